"""Files in JSON that a run or a model's author has left: read within bounds, and one line where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dat_ray.data.shards import read_bytes
from dat_ray.errors import InputError, ShardError, error_line
from dat_ray.json_text import JsonError, parse_lines, parse_object

# What looking for entries in values of any type may raise.
MISSHAPEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
_REMEDY = "restore it, or remove it and run the stage that writes it again"


def stored_object(path: str, *, finite: bool = True) -> dict[str, Any]:
    """The object in a run's file.

    Args:
        path: local path or URI.
        finite: see `parse_json`; measurements may hold a NaN.

    Raises:
        ShardError: it cannot be read as one.
        UnreachableStorage: it is gone, or the storage does not hand it over.
    """
    try:
        return parse_object(read_bytes(path), finite=finite)
    except JsonError as error:
        raise ShardError(f"{path} {error}: {_REMEDY}") from None


def stored_lines(path: str, *, finite: bool = True) -> list[dict[str, Any]]:
    """The objects in a run's file of JSON lines.

    Raises:
        ShardError: a line cannot be read as one.
        UnreachableStorage: it is gone, or the storage does not hand it over.
    """
    try:
        return parse_lines(read_bytes(path), finite=finite)
    except JsonError as error:
        raise ShardError(f"{path} {error}: {_REMEDY}") from None


@contextmanager
def well_formed(path: str) -> Iterator[None]:
    """Turns what the use of a file's content raises, where an entry is missing or of another type, into one line about it.

    Raises:
        ShardError: names the file.
    """
    try:
        yield
    except MISSHAPEN as error:
        raise ShardError(f"{path} does not hold what this program writes there ({error_line(error, 160)}): {_REMEDY}") from error


def model_settings(path: Path, field: str = "model") -> dict[str, Any]:
    """The object in a JSON file of a model's folder, such as config.json.

    Args:
        path: of the file.
        field: recipe field to name in an error.

    Raises:
        InputError: there is none, or it is no object.
    """
    try:
        return parse_object(path.read_bytes(), finite=False)
    except (JsonError, OSError) as error:
        reason = str(error) if isinstance(error, JsonError) else f"cannot be read ({error_line(error, 160)})"
        raise InputError(field, str(path), f"{reason}: download or save the model again") from None


@contextmanager
def sound_settings(field: str, model: str) -> Iterator[None]:
    """Turns what the use of a model's configuration raises, where an entry is missing or of another type, into one line.

    Raises:
        InputError: names the model.
    """
    try:
        yield
    except MISSHAPEN as error:
        remedy = f"its config.json has an entry that makes no sense ({error_line(error, 160)}): download or save the model again"
        raise InputError(field, model, remedy) from error
