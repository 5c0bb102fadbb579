"""The two kinds of failure a user sees: bad input (exit 2) and a failed run (exit 1), one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dat_ray.printable import printable
from dat_ray.secrets import BLANK, looks_secret, redact


def one_line(text: str) -> str:
    """Text of others, as it may be printed and stored: in one line, without secrets and without control characters."""
    # Blanked first: a secret with a line break is then still spelled as it is. And again, where lines were broken inside it.
    return redact(" ".join(printable(redact(text)).split()))


def error_line(error: BaseException, limit: int = 300) -> str:
    """An error's type and what it says, for a row, a record or a message: see `one_line`."""
    return one_line(f"{type(error).__name__}: {error}".strip(": "))[:limit]


# Characters of a message for people. A damaged file may hold a value of any length, and messages quote values.
LONGEST_MESSAGE = 2000


class DatError(Exception):
    """A run that cannot go on. Its message is one line; the command line prints it without a traceback.

    The middle of a message that is longer than `LONGEST_MESSAGE` is left out: what is wrong stands at its beginning, and what to
    do at its end.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        shown = printable(redact(message))
        if len(shown) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            shown = f"{shown[:half]} [...] {shown[-half:]}"
        super().__init__(shown)


class InputError(DatError):
    """A bad input: names the field, the value that was given and what to do about it.

    Args:
        field: dotted name of the recipe field, option or file at fault.
        value: what was given, shown as ``repr``; ``...`` for a whole section, which is not shown.
        remedy: what to change, in the imperative.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        # A key that somebody put into a recipe must not end in a log.
        shown = BLANK if looks_secret(field.rsplit(".", 1)[-1]) else _shown(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{field} = {shown}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.field, self.value, self.remedy)


@contextmanager
def blamed_on(section: str, owner: str = "target") -> Iterator[None]:
    """A role's own code speaks of its usual section of a recipe, `owner`; another section that uses it is named instead."""
    try:
        yield
    except InputError as error:
        if error.field.split(".")[0] != owner:
            raise
        raise InputError(section + error.field.removeprefix(owner), error.value, error.remedy) from error


def _shown(value: object) -> str:
    """As `repr`, which of some values is not to be had: a number of thousands of digits, or lists in lists without end."""
    try:
        return "{...}" if value is Ellipsis else redact(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with what is left of the work: the command line prints it instead of its own words."""


class EngineLost(DatError):
    """An engine that cannot go on in its process; one in a fresh process may."""


# Told by name, so that neither vllm nor torch has to be imported to recognize them. After these the process is of no
# more use: vLLM's engine loop is gone, or the CUDA context is corrupt.
_ENDS_ENGINE = frozenset({"EngineDeadError", "AcceleratorError"})


def ends_engine(error: BaseException) -> bool:
    """Whether an engine that raised this is of no more use in its process."""
    return isinstance(error, EngineLost) or bool(_ENDS_ENGINE & {kind.__name__ for kind in type(error).__mro__})


class HelperLost(DatError):
    """A helper process of the run that does not answer any more."""


class LeaseLost(DatError):
    """A run directory that this process may not write to any more: another one may have it."""


class DamagedCheckpoint(DatError):
    """A checkpoint that is not as it was written; the one before it may be."""


class ShardError(DatError):
    """A stored file that does not match its manifest."""


class StorageError(DatError):
    """Storage that refuses a write: full, read-only, or out of reach. Trying again may mend it."""


class UnreachableStorage(StorageError, OSError):
    """Storage that cannot be opened or asked. An OSError too: whoever waits out an outage waits this one out."""
