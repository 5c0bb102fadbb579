"""YAML without surprises: a key that stands twice in one mapping is an error, where YAML's own loader takes the last."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Plain values of a YAML document.

    Raises:
        yaml.YAMLError: it cannot be read, or repeats a key.
    """
    loader = yaml.SafeLoader(text)
    try:
        # The tree is looked at before anything is built, when merged keys (`<<`) are not yet among a mapping's own.
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    first = lines[key.tag, key.value]
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice in one section, in lines {first} and {line}")
                lines[key.tag, key.value] = line
            _check_keys(value, seen)
