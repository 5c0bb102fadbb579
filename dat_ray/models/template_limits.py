"""A chat template is a program of somebody else's: here it runs in Jinja's sandbox with a budget of steps and of memory.

The environment is that of transformers' `apply_chat_template` (its filters, functions and extensions), so that what is written is
the same. Beyond it every iteration of a loop, every call and every filter counts as a step, and no value may grow without
end: a template that would run for ever, or fill the machine's memory, ends in a `TemplateLimit` after about a second.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from transformers.utils.chat_template_utils import _compile_jinja_template

# The longest published templates have some 20,000 characters.
MAX_TEMPLATE = 500_000
# Of a rendering; a conversation of a thousand turns takes some 20,000.
MAX_STEPS = 200_000
# Characters of a text, and of the whole rendering.
MAX_LENGTH = 10_000_000
# Of nested lists together.
MAX_VALUES = 200_000
# A count or a width in a template: none is as large.
MAX_NUMBER = 100_000
_MAX_BITS = 4096
# A length in a format, as in `%1000000000d`.
_WIDTH = re.compile(r"\d{6,}|%[-+ #0-9.]*\*")
# Methods and filters whose result can be as long as the product of their texts.
_MULTIPLYING = frozenset({"replace", "join", "translate", "indent", "expandtabs", "wordwrap"})


class TemplateLimit(SecurityError):
    """A template that takes more steps or memory than a conversation needs."""


class _Steps:
    """The budget of one rendering."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimit(f"takes more than {MAX_STEPS:,} steps")


class _CountedLoops(CodeGenerator):
    """Writes a step into the body of each loop, and a limit around each `~`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, nodes.Output([_call("count_step")], lineno=node.lineno))
        if node.test is not None:
            # The condition is asked for elements that the body never sees.
            node.test = nodes.And(_call("count_step_true"), node.test, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        call = _call("joined", nodes.List(node.nodes, lineno=node.lineno))
        self.visit(call, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._measured(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._measured(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._measured(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _measured(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.bounded(")
        visit(node, frame)
        self.write(")")


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    found = nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
    found.set_lineno(1)
    return found


class _LimitedEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _CountedLoops
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    steps = _Steps()

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What blocks and macros put their text together with."""
        texts = list(parts)
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def count_step(self) -> str:
        self.steps.spend()
        return ""

    def count_step_true(self) -> bool:
        self.steps.spend()
        return True

    def joined(self, parts: list[Any]) -> str:
        return self.concat(str(part) for part in parts)

    def bounded(self, value: Any) -> Any:
        """The value, unless it is longer, or holds more in all its lists, than a conversation does."""
        if isinstance(value, str):
            _check_length(len(value))
        elif isinstance(value, list | tuple | dict | Namespace):
            self.steps.spend(_count(value) // 10)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.steps.spend()
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_length(len(left) + len(right))
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if right * max(1, left.bit_length()) > _MAX_BITS:
                raise TemplateLimit("computes a number without end")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        return self.bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *arguments: Any, **named: Any) -> Any:
        # Jinja wraps `format` of a text.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        subject = (owner,) if isinstance(owner, str) else ()
        self.check_use(name, (*subject, *arguments), named)
        return self.bounded(super().call(context, function, *arguments, **named))

    def check_use(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Counts a call or a filter by the size of what it is given, and refuses what it could blow up."""
        values = (*arguments, *named.values())
        sizes = [len(value) for value in values if isinstance(value, str | list | tuple | dict | range)]
        self.steps.spend(1 + sum(sizes) // 100)
        if any(type(value) is int and abs(value) > MAX_NUMBER for value in arguments[1:]) or any(
            type(value) is int and abs(value) > MAX_NUMBER for value in named.values()
        ):
            raise TemplateLimit(f"calls {name or 'a function'} with a number above {MAX_NUMBER:,}")
        if name in _MULTIPLYING:
            _check_length(_product(values))
        if name in ("format", "format_map") and arguments and isinstance(arguments[0], str):
            _check_format(arguments[0])
        if name == "safe_range":
            self.steps.spend(len(range(*(value for value in arguments if isinstance(value, int)))))


def _product(values: tuple[Any, ...]) -> int:
    """The longest text that can come of replacing, joining or indenting texts by one another."""
    texts = [len(value) if isinstance(value, str) else abs(value) for value in values if isinstance(value, str | int)]
    lists = [len(value) for value in values if isinstance(value, list | tuple | dict)]
    inner = max((len(str(one)) for value in values if isinstance(value, dict) for one in value.values()), default=1)
    longest = sorted([*texts, *lists, inner, 1])
    return (longest[-1] + 1) * (longest[-2] + 1) if len(longest) > 1 else longest[-1]


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TemplateLimit(f"writes a text or a list of more than {MAX_LENGTH:,} elements")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
        raise TemplateLimit("computes a number without end")
    for sequence, times in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(times, int):
            _check_length(len(sequence) * times)


def _check_format(text: str) -> None:
    if _WIDTH.search(text):
        raise TemplateLimit("formats a value in a width without end")


def _count(value: Any) -> int:
    """How many values one holds, those in several places counted as often: a text of it is as long."""
    count, level = 0, [value]
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict | Namespace):
                inner.extend((one if isinstance(one, dict) else one._Namespace__attrs).values())
            elif isinstance(one, list | tuple):
                inner.extend(one)
            if len(inner) > MAX_VALUES:
                raise TemplateLimit(f"builds a list of more than {MAX_VALUES:,} values")
        count += len(inner)
        level = inner
        if count > MAX_VALUES:
            raise TemplateLimit(f"builds a list of more than {MAX_VALUES:,} values")
    return count


def _limited_filter(name: str, function: Callable[..., Any], environment: _LimitedEnvironment) -> Callable[..., Any]:
    @functools.wraps(function)
    def limited(*arguments: Any, **named: Any) -> Any:
        # What Jinja itself hands to a filter, before what the template does.
        passed = tuple(value for value in arguments if not isinstance(value, Context | _LimitedEnvironment))
        environment.check_use(name, passed, named)
        return environment.bounded(function(*arguments, **named))

    return limited


class LimitedTemplate:
    """A chat template that ends.

    Args:
        text: of the template.

    Raises:
        TemplateLimit: it is too long.
        jinja2.TemplateError: it cannot be parsed.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEMPLATE:
            raise TemplateLimit(f"is longer than {MAX_TEMPLATE:,} characters")
        # Its filters, functions and extensions, with this class' rules in place of its own.
        library: Template = _compile_jinja_template("")
        self._environment = environment = object.__new__(_LimitedEnvironment)
        environment.__dict__.update(library.environment.__dict__)
        environment.cache = None
        environment.shared = False
        environment.extensions = {name: one.bind(environment) for name, one in library.environment.extensions.items()}
        environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
        environment.filters = {
            name: _limited_filter(name, function, environment) for name, function in library.environment.filters.items()
        }
        environment.binop_table = dict(environment.binop_table)
        environment.steps = _Steps()
        self._template = environment.from_string(text)

    def render(self, **variables: Any) -> str:
        """The text for these variables.

        Raises:
            TemplateLimit: it takes more than a conversation needs.
            Exception: whatever the template itself raises.
        """
        self._environment.steps = _Steps()
        parts: list[str] = []
        length = 0
        for part in self._template.generate(**variables):
            length += len(part)
            _check_length(length)
            parts.append(part)
        return "".join(parts)
