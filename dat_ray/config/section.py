"""What every part of a recipe is made of: a strict pydantic model, and the names of common types."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticUndefined

from dat_ray.devices import multiplies_bfloat16

Positive = Annotated[int, Field(gt=0)]


NonNegative = Annotated[int, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _absent_at(end: float) -> BeforeValidator:
    def read(value: Any) -> Any:
        try:
            return None if float(value) == end else value
        except (TypeError, ValueError, OverflowError):
            return value

    return BeforeValidator(read)


# Of a limit that may be absent: the number that limits nothing means the same. JSON has no word for an infinity, and a recipe
# goes through JSON to a run directory and to workers.
NO_UPPER_LIMIT = _absent_at(math.inf)
NO_LOWER_LIMIT = _absent_at(-math.inf)


def _of_this_machine(value: Any) -> Any:
    """`auto` is settled where a recipe is read, so that a run directory's says what was computed with."""
    if value == "auto":
        return "bfloat16" if multiplies_bfloat16() else "float32"
    return value


# `auto`: bfloat16 where this machine has a GPU or a processor that multiplies it, float32 elsewhere.
DType = Annotated[Literal["float32", "bfloat16", "float16"], BeforeValidator(_of_this_machine)]


Backend = Literal["vllm", "torch"]


def expand_home(path: str) -> str:
    """A path with `~` or `~name` at its start written out; other texts, such as URIs and hub ids, stay as they are.

    Raises:
        ValueError: no home folder of that name is known; taken as it is, it would name a new folder called `~name`.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"no home folder is known for {path.split('/', 1)[0]}: write the path out")
    return expanded


# A local path, or what may stand in its place: a URI, a hub id, `builtin:NAME`.
PathText = Annotated[str, AfterValidator(expand_home)]


@dataclass(frozen=True)
class NoEffectOnRows:
    """Marks a field, in its `Annotated`, that says where, how fast or in which pieces something is done, never what comes out.

    Such a field is no part of a fingerprint and may differ when a run goes on. Rounding alone is no effect where the same
    numbers are added in another order or by another kernel, as on another device. A number format or a model's implementation
    is one. Without the mark a field counts: the safe side, on which a new field stands until somebody decides.
    """


NO_EFFECT_ON_ROWS = NoEffectOnRows()


class Outside(StrEnum):
    """Marks a field, in its `Annotated`, whose value leads out of a run directory, and says to what.

    In a recipe that a run directory holds, such a value may be somebody else's: see `dat_ray.data.trust`. Models are not
    marked: whoever wrote a model's files, they are read as those of a stranger, without code.
    """

    ADDRESS = "address"
    VARIABLE = "environment variable"
    FILE = "file or folder"
    CODE = "folder with code"
    CLASS = "class to import"
    TRACKER = "tracking server's project"


# Context of a validation, for recipes that a run directory holds: nothing that they name is opened while they are read.
STORED = {"stored": True}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, numbers are finite, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    # Of a file that holds one: what messages call it, and where to see one.
    NOUN: ClassVar[str] = "recipe"
    EXAMPLE: ClassVar[str] = "see `dat recipes show demo`"


@dataclass(frozen=True)
class Leaf:
    """A value of a recipe below which there is no section.

    Attributes:
        value: as in JSON.
        default: the value where nothing is written, as in JSON; `PydanticUndefined` where something has to be.
        changes_rows: whether rows depend on it.
        outside: what it leads to outside a run directory, where it does.
    """

    value: Any
    default: Any
    changes_rows: bool
    outside: Outside | None = None

    @property
    def at_default(self) -> bool:
        return bool(self.value == self.default)


# The value of an optional section that is there, besides what is in it.
GIVEN = "given"


def leaves(section: Section) -> Iterator[tuple[str, Leaf]]:
    """Dotted names and values of everything in a section, in the order of its fields."""
    yield from _leaves(section, None, "", True)


def _leaves(section: Section, default: Section | None, prefix: str, changes_rows: bool) -> Iterator[tuple[str, Leaf]]:
    """As `leaves`; `default` is what stands there where the whole section is left out, None where that is no section."""
    values = section.model_dump(mode="json")
    defaults = _class_defaults(type(section)) if default is None else default.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        path, counts = f"{prefix}{name}", changes_rows and NO_EFFECT_ON_ROWS not in field.metadata
        value = getattr(section, name)
        if isinstance(value, tuple) and any(isinstance(one, Section) for one in value):
            # A list of sections: each stands at its number, as in `prompts.0.path`.
            for number, one in enumerate(value):
                yield f"{path}.{number}", Leaf(GIVEN, None, counts)
                yield from _leaves(one, None, f"{path}.{number}.", counts)
            continue
        if not isinstance(value, Section):
            outside = next((mark for mark in field.metadata if isinstance(mark, Outside)), None)
            yield path, Leaf(values[name], defaults[name], counts, outside)
            continue
        if defaults[name] is None:
            yield path, Leaf(GIVEN, None, counts)
        inner = field.get_default(call_default_factory=True, validated_data={}) if default is None else getattr(default, name)
        yield from _leaves(value, inner if isinstance(inner, Section) else None, f"{path}.", counts)


@functools.cache
def _class_defaults(kind: type[Section]) -> Mapping[str, Any]:
    """Each field's default as in JSON, as it is without validation."""
    defaults = {
        name: field.get_default(call_default_factory=True, validated_data={}) for name, field in kind.model_fields.items()
    }
    given = {name: value for name, value in defaults.items() if value is not PydanticUndefined}
    return defaults | kind.model_construct(**given).model_dump(mode="json", include=set(given), warnings=False)
