"""What every part of a recipe is made of: a strict pydantic model, and the names of common types."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]


NonNegative = Annotated[int, Field(ge=0)]


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


DType = Literal["float32", "bfloat16", "float16"]


Backend = Literal["vllm", "torch"]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
