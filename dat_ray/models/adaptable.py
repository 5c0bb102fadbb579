"""Which causal models `dat adapt` can turn into a sampler that both backends load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dat_ray.errors import InputError
from dat_ray.models.layouts import ARCHITECTURES

# What a causal model of these layouts may say and still be computed by the samplers of both backends.
_PLAIN: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "use_sliding_window": (False, None)}


def not_adaptable(config: Mapping[str, Any]) -> str | None:
    """Why a model of this configuration cannot become a sampler, and what can; None where it can.

    The sentence goes on after the model's name.
    """
    layout, classes = config.get("model_type"), list(config.get("architectures") or [])
    if layout not in ARCHITECTURES:
        return f"is of layout {layout}, of which no sampler is known: use a model of layout {_either(ARCHITECTURES)}"
    if classes != [ARCHITECTURES[layout]]:
        shown = ", ".join(map(str, classes)) or "no class"
        return f"its config.json names {shown} in `architectures`: use a causal chat model, a {ARCHITECTURES[layout]}"
    if config.get("is_causal", True) is False:
        return "its config.json has is_causal = False, so it predicts no next token: use a causal chat model"
    for option, allowed in _PLAIN.items():
        if config.get(option, allowed[0]) not in allowed:
            said = f"its config.json has {option} = {config[option]!r}"
            return f"{said}, of which no sampler is known: use a model with {allowed[0]!r}"
    return None


def check_adaptable(config: Mapping[str, Any], name: str, field: str = "BASE") -> None:
    """Checks that a causal model, turned into a sampler, is one that the samplers of both backends can load.

    Args:
        config: content of its config.json.
        name: folder or hub id, for messages.
        field: option to name in an error.

    Raises:
        InputError: another layout or class, or an option that the layout's sampler does not compute.
    """
    problem = not_adaptable(config)
    if problem is not None:
        raise InputError(field, name, problem)


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
