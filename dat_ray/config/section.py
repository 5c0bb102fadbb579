"""What every part of a recipe is made of: a strict pydantic model, and the names of common types."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


NonNegative = Annotated[int, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


DType = Literal["float32", "bfloat16", "float16"]


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


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
