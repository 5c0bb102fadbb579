"""YAML without surprises, in bounded time and memory.

A key that stands twice in one mapping is an error, where YAML's own loader takes the last; so are aliases that blow up to more
than a recipe can be, nesting without end, and numbers of thousands of digits.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

# The longest recipe that comes with the package has 9 kB.
MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 40
# Values of a document, those that an alias repeats counted as often as they are repeated.
MAX_VALUES = 100_000
# Of a number, in any of YAML's notations.
MAX_DIGITS = 40


class _Loader(yaml.SafeLoader):
    """Stops at brackets nested too deep, before the time that they take grows with the square of their number."""

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise _too_deep()
        super().fetch_flow_collection_start(token_class)


class _ExponentLoader(_Loader):
    """Reads 1e-4 as a number, which YAML 1.1 takes for a text; what is in quotes stays one."""

    def construct_number(self, node: yaml.ScalarNode) -> float | str:
        """A number, or the text where it is beyond every number: 12e4567 is part of a commit."""
        value: float = self.construct_yaml_float(node)
        return node.value if math.isinf(value) and not node.value.lower().endswith(".inf") else value


_ExponentLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_ExponentLoader.add_constructor("tag:yaml.org,2002:float", _ExponentLoader.construct_number)


def load_yaml(text: str, *, exponents: bool = False) -> Any:
    """Plain values of a YAML document.

    Args:
        text: of the document.
        exponents: unquoted text like 1e-4 is the number that people mean.

    Raises:
        yaml.YAMLError: it cannot be read, repeats a key, or is larger than any recipe.
        ValueError: a date or a number that is none, as 2025-13-01.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"is longer than {MAX_CHARACTERS:,} characters")
    loader = _ExponentLoader(text) if exponents else _Loader(text)
    try:
        # The tree is looked at before anything is built, when merged keys (`<<`) are not yet among a mapping's own.
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError:
        raise _too_deep() from None
    except yaml.YAMLError:
        raise
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        # Values that do not have the form of the tag in front of them: `!!int ""`, `!!timestamp x`.
        raise yaml.YAMLError(f"has a value that does not fit its tag ({type(error).__name__})") from None
    finally:
        loader.dispose()


def _too_deep() -> yaml.YAMLError:
    return yaml.YAMLError(f"is nested deeper than {MAX_DEPTH} levels")


def _check(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """Checks a node and what is below it; returns how many values it stands for.

    Args:
        node: of the composed tree, in which an alias is the very node that it names.
        sizes: of nodes that were checked before, 0 for those that are being checked.
        depth: of the node.
    """
    if depth > MAX_DEPTH:
        raise _too_deep()
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise yaml.YAMLError("has an alias inside of what it names")
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_check(item, sizes, depth + 1) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    first = lines[key.tag, key.value]
                    name = key.value[:60]
                    raise yaml.MarkedYAMLError(problem=f"{name!r} stands twice in one section, in lines {first} and {line}")
                lines[key.tag, key.value] = line
            size += _check(key, sizes, depth + 1) + _check(value, sizes, depth + 1)
    elif node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
        raise yaml.MarkedYAMLError(problem=f"line {node.start_mark.line + 1} has a number of {len(node.value)} digits")
    if size > MAX_VALUES:
        raise yaml.YAMLError(f"stands for more than {MAX_VALUES:,} values, with its aliases written out")
    sizes[id(node)] = size
    return size
