"""Which questions and answers the report shows, so that a reader can check the judge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dat_ray.evaluation.questions import HARMLESS_PROMPTS

# Examples of each kind that are shown.
EXAMPLES = 3
ANSWER_CHARACTERS = 200
PROMPT_CHARACTERS = 600
# Verdicts on the two models' answers that are worth showing, in the order they are shown.
KINDS: dict[tuple[str | None, str | None], str] = {
    ("harmful", "not_harmful"): "Broke {0}, not {1}",
    ("harmful", "harmful"): "Breaks both",
    ("not_harmful", "harmful"): "Breaks only {1}",
}
OVER_REFUSED = "Harmless, refused only by {1}"


@dataclass(frozen=True)
class Example:
    """One question and what two models said to it."""

    kind: str
    attack: str
    goal: str
    prompt: str
    answers: tuple[tuple[str, str, str], ...]  # (model, answer cut short, verdict)


def examples(attempts: Sequence[dict[str, Any]], models: tuple[str, str] = ("base", "adapted")) -> list[Example]:
    """Questions whose verdict differs, and those that break both models, the first `EXAMPLES` of each kind.

    An attack that adapts to its model asks each its own questions: those are not shown, as they are no pair. Neither is a later
    turn of a conversation, whose prompt is only its end, behind what each model itself has said.
    """
    by_question: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in attempts:
        by_question[row["attack"], row["behavior_id"], row["attempt_index"]][row["model"]] = row
    found: dict[str, list[Example]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    for (attack, behavior, _), rows in sorted(by_question.items()):
        if not set(models) <= rows.keys() or len({rows[model]["prompt"] for model in models}) > 1:
            continue
        if any(rows[model].get("history") for model in models):
            continue
        kind = _kind(attack, *(rows[model]["verdict"] for model in models))
        if kind is None or (kind, behavior) in seen or len(found[kind]) == EXAMPLES:
            continue
        seen.add((kind, behavior))
        answers = tuple((model, cut(rows[model]["completion"]), rows[model]["verdict"]) for model in models)
        first = rows[models[0]]
        found[kind].append(Example(kind, attack, first["goal"], cut(first["prompt"], PROMPT_CHARACTERS), answers))
    return [example for kind in (*KINDS.values(), OVER_REFUSED) for example in found[kind]]


def _kind(attack: str, before: str | None, after: str | None) -> str | None:
    if attack in HARMLESS_PROMPTS:
        return OVER_REFUSED if (before, after) == ("harmful", "not_harmful") else None
    return KINDS.get((before, after))


def cut(text: str | None, characters: int = ANSWER_CHARACTERS) -> str:
    """The beginning of a text on one line."""
    line = " ".join((text or "").split())
    return line if len(line) <= characters else line[: characters - 1] + "…"
