"""Which names may become parts of paths: all are checked here, whether an option, a recipe or a stored record gave them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from dat_ray.errors import InputError

# Of recipes and suites: one part of a path, on one line, that no shell or file system takes for something else.
_NAME = re.compile(r"[^\W_][\w .@+,:=()'-]{0,127}(?<! )")
# Of models in an evaluation: parts of file names, where "-" comes before the attack; NAME@SEED is one of several seeds.
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]*(@[A-Za-z0-9]+)?")
# As `dat_ray.config.loading.fingerprint` forms it; a folder of the training carries it.
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

NAME_REMEDY = "a name begins with a letter or digit, and holds letters, digits, spaces, . _ - + @ , : = ( ) ', at most 128 in all"
MODEL_REMEDY = "a name is made of letters, digits, dots and underscores, and may end in @SEED"


def is_name(text: object) -> bool:
    """Whether a text can name a recipe, a suite or a folder."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_model_name(text: object) -> bool:
    """Whether a text can name a model of an evaluation."""
    return isinstance(text, str) and _MODEL.fullmatch(text) is not None


def is_fingerprint(text: object) -> bool:
    """Whether a text is a recipe's fingerprint."""
    return isinstance(text, str) and _FINGERPRINT.fullmatch(text) is not None


def check_name(field: str, text: str) -> str:
    """The text, which can name a folder.

    Raises:
        InputError: it cannot.
    """
    if not is_name(text):
        raise InputError(field, text, NAME_REMEDY)
    return text


def _named(text: str) -> str:
    if not is_name(text):
        raise ValueError(NAME_REMEDY)
    return text


Name = Annotated[str, AfterValidator(_named)]
