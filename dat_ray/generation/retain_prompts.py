"""Harmless prompts in the sampler's own style: the in-painted part of the retain set.

A sampler has a style: openings, lengths, repeated words. A model that only ever meets it in harmful rows learns to refuse the
style. So prompts of the same sampler, for harmless requests or far from every harmful goal, are retained with the base model's
own answers. The published method retains rows of public chats alone; this part is this project's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import RowView
from dat_ray.data.schemas import HARMLESS, HARMLESS_HELD_OUT, LOOK_ALIKES, RETAIN, TRAIN
from dat_ray.data.text import holds, near_duplicates, normalize

FOR_HARMLESS, OFF_GOAL = "in-painted for a harmless request", "in-painted off the goal"
# Why a prompt is not fit to be retained, in the order in which it is asked.
REASONS = ("error", "empty", "leak", "near a training goal", "piece of a harmful word", "near a held-out request", "duplicate")
# What was drawn to do harm and missed its goal may ask for another harm, or for the same in broken words, as 6% of 138 do that a
# strict reader saw. So it must be nearer to a harmless request by this cosine, and hold no garbled word with so many letters of
# a harmful one (docs/experiments.md).
OFF_GOAL_MARGIN, PIECE = 0.05, 6


@dataclass(frozen=True)
class RetainPrompts:
    """Prompts that are fit to be retained.

    Attributes:
        table: RETAIN, with the base model's answers; first one prompt of every request, then a second one of each.
        dropped: reason -> prompts that are not fit.
    """

    table: pa.Table
    dropped: dict[str, int]

    @property
    def by_source(self) -> dict[str, int]:
        """Rows of each source."""
        return dict(Counter(self.table["source"].to_pylist()))


def retain_prompts(candidates: Sequence[RowView], behaviors: Sequence[RowView], recipe: Recipe) -> RetainPrompts:
    """The prompts of a round that are fit to be retained; which of them are is up to `training.retain.inpainted_share`.

    Fit is a prompt that is far from every training goal and nearer to some harmless request than to any of them, by the
    encoder; that asks for nothing that over-refusal is measured with; and that nobody else has written. One that was drawn for a
    training goal must be nearer to the harmless request by a margin, and hold no word in which a harmful one is garbled.

    Args:
        candidates: schema CANDIDATES, in any order: the result does not depend on it.
        behaviors: schema BEHAVIORS.
        recipe: its `selection` and `training.retain` sections.
    """
    retain = recipe.training.retain
    if retain is None or not retain.inpainted_share:
        return RetainPrompts(RETAIN.empty_table(), {})
    held_out = sorted({row["goal"] for row in behaviors if row["split"] in (LOOK_ALIKES, HARMLESS_HELD_OUT)})
    pieces = _Pieces(behaviors)
    sources = {row["candidate_id"]: source for row in candidates if (source := _source(row, recipe)) is not None}
    rows = sorted((row for row in candidates if row["candidate_id"] in sources), key=lambda row: str(row["candidate_id"]))
    copies = {i for i, _, _ in near_duplicates([row["prompt"] or "" for row in rows], held_out, recipe.behaviors.near_duplicate)}
    dropped: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    texts: set[str] = set()
    by_request: defaultdict[str, list[RowView]] = defaultdict(list)
    for number, row in enumerate(rows):
        off_goal = sources[row["candidate_id"]] == OFF_GOAL
        reason = _unfit(row, retain.max_training_goal_similarity, OFF_GOAL_MARGIN if off_goal else 0.0)
        if reason is None and off_goal and pieces.in_prompt(row["prompt"]):
            reason = "piece of a harmful word"
        if reason is None and number in copies:
            reason = "near a held-out request"
        if reason is None and normalize(row["prompt"]) in texts:
            reason = "duplicate"
        if reason:
            dropped[reason] += 1
        else:
            texts.add(normalize(row["prompt"]))
            by_request[row["behavior_id"]].append(row)
    turns = sorted((turn, str(row["candidate_id"]), row) for found in by_request.values() for turn, row in enumerate(found))
    kept = [
        {
            "retain_id": identifier,
            "prompt": row["prompt"],
            "response": row["completion"],
            "source": sources[identifier],
        }
        for _, identifier, row in turns
    ]
    return RetainPrompts(pa.Table.from_pylist(kept, schema=RETAIN), dict(dropped))


def _source(row: RowView, recipe: Recipe) -> str | None:
    """What a prompt is to be retained as; None for a prompt that was meant to do harm and is on its goal."""
    if row.get("split") == HARMLESS:
        return FOR_HARMLESS
    floor, similarity = recipe.selection.min_goal_similarity, row.get("goal_similarity")
    if recipe.selection.off_goal == "retain" and floor is not None and similarity is not None and similarity < floor:
        return OFF_GOAL
    return None


class _Pieces:
    """Garbled words: of no request, and sharing `PIECE` letters in a row with a word of a training goal or its responses."""

    def __init__(self, behaviors: Sequence[RowView]) -> None:
        self._harmful, harmless = (
            {word for row in behaviors if row["split"] == split for word in _words(row["goal"], row["target"])}
            for split in (TRAIN, HARMLESS)
        )
        self._known = self._harmful | harmless
        self._pieces = {piece for word in self._harmful for piece in self._of(word)}

    def in_prompt(self, prompt: str) -> bool:
        """Whether a prompt holds such a word."""
        return any(piece in self._pieces for word in _words(prompt) - self._known for piece in self._of(word))

    @staticmethod
    def _of(word: str) -> set[str]:
        return {word[start : start + PIECE] for start in range(len(word) - PIECE + 1)}


def _words(*texts: str) -> set[str]:
    return {word for text in texts for word in normalize(text).split()}


def _unfit(row: RowView, most: float, margin: float) -> str | None:
    """Why a prompt cannot be retained, looked at by itself; what was not measured is not known to be harmless."""
    if row["error"] is not None:
        return "error"
    if not normalize(row["prompt"]) or not (row["completion"] or "").strip():
        return "empty"
    if holds(row["prompt"], row["target"]):
        return "leak"
    harmful, harmless = row.get("training_goal_similarity"), row.get("harmless_similarity")
    if harmful is None or harmless is None or harmful >= most or harmful >= harmless - margin:
        return "near a training goal"
    return None
