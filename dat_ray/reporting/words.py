"""Numbers and names as a reader sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Tree = Mapping[str, Any]

# What blocks call the figure that an interval belongs to.
_ESTIMATES = ("asr", "rate", "mean", "value", "difference")
MODEL_NAMES = {"base": "base", "adapted": "fine-tuned"}
ATTACK_NAMES = {
    "direct": "Direct request",
    "prefilling": "Prefilling",
    "past_tense": "Past tense",
    "future_tense": "Future tense",
    "translation": "Translation",
    "best_of_n": "Best-of-N",
    "templates": "Jailbreak templates",
    "pair": "PAIR",
    "gcg": "GCG",
    "embedding": "Embedding attack",
    "inpainting": "In-painted prompts",
    "inpainting_heldout": "In-painted, held-out sampler",
    "over_refusal": "Harmless look-alike",
}


def model_name(name: str) -> str:
    """A model's name for people."""
    return MODEL_NAMES.get(name, name)


def attack_name(attack: str) -> str:
    """An attack's name for people."""
    return ATTACK_NAMES.get(attack, attack)


def percent(value: float | None) -> str:
    """`0.12` as `12%`; `–` where nothing was measured."""
    return "–" if value is None else f"{100 * value:.0f}%"


def points(value: float | None) -> str:
    """A difference of rates in signed percentage points."""
    if value is None:
        return "–"
    whole = round(100 * value)
    return f"{whole:+d}".replace("-", "−") if whole else "0"


def nats(value: float) -> str:
    """A signed number of nats."""
    return f"{value:+.2f}".replace("-", "−")


def span(block: Tree, shown: Callable[[Any], str] = percent) -> str:
    """`[low, high]` of a block with these fields, or why it has none: nothing was measured, or a single behavior was."""
    if block["low"] is None:
        return "(no interval)" if any(block.get(name) is not None for name in _ESTIMATES) else "not measured"
    # A no-break space, so that no line ends inside an interval.
    return f"[{shown(block['low'])},\u00a0{shown(block['high'])}]"


def judge_kind(judge: Tree) -> str:
    """What a judge is: never left out beside its numbers."""
    return "a rule-based proxy, not a harm judge: it tells refusals from compliance" if judge["is_proxy"] else "a harm judge"


def judge_name(judge: Tree) -> str:
    """A judge's name, with what it is where it is no harm judge."""
    return f"{judge['name']} (a proxy)" if judge["is_proxy"] else str(judge["name"])


def words(identifier: str) -> str:
    """`some_name` as `some name`."""
    return identifier.replace("_", " ")


def rate_name(judge: Tree) -> str:
    """What the judge's rate is called."""
    return "Proxy attack success" if judge["is_proxy"] else "Attack success"
