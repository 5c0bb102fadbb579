"""What an encoder says of a round's prompts: how different they are in meaning, and which are near to a held-out goal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter

from dat_ray.config.schema import Recipe
from dat_ray.data.ids import row_id
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import HELD_OUT, TRAIN, for_training_goals
from dat_ray.data.shards import exists, has_manifest, join, read_file, read_table, write_bytes
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.engines.calls import EncodeCall, Failure, encode
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.measures.meaning import MeaningDiversity, Neighbor, meaning_diversity, neighbors

FILE = "meaning.json"
# A sample of so many prompts stands for larger sets: the encoder's time does not grow with the round.
MOST_PROMPTS = 2000
TEXTS_OF_CALL = 256
# From here a text asks for what the held-out goal asks for, read as a person would; what is below mostly shares a topic.
SAME_MEANING = 0.9
NAMED = 3


@dataclass(frozen=True)
class PromptMeaning:
    """What an encoder says of a round's prompts.

    Attributes:
        encoder: its name.
        candidates, selected: how different the drawn prompts are in meaning, and those that are trained on, goals among them
            where the recipe keeps these; None where nothing was drawn.
        nearest: of training goals and of training prompts, the pairs with a held-out goal that are nearest in meaning.
        lines: what is worth saying: texts that could not be encoded, goals and prompts that mean what a held-out goal means.
    """

    encoder: str
    candidates: MeaningDiversity | None
    selected: MeaningDiversity
    nearest: dict[str, list[Neighbor]]
    lines: list[str]


def measure_meaning(recipe: Recipe, run: RunDir, round_index: int, engines: Engines | None = None) -> list[str]:
    """Writes `meaning.json` beside a round's training set, where the recipe has an encoder and it is not there yet.

    Args:
        recipe: its `encoder`.
        run: with the round's training set, and its candidates where it has some.
        round_index: the round.
        engines: how the encoder is made; default: the recipe's.

    Returns:
        What is worth saying, a line each.

    Raises:
        DatError: the encoder failed.
    """
    path = join(run.training_set(round_index), FILE)
    if recipe.encoder is None or exists(path):
        return []
    behaviors = read_file(run.behaviors).to_pylist()
    goals = {split: list(dict.fromkeys(row["goal"] for row in behaviors if row["split"] == split)) for split in (TRAIN, HELD_OUT)}
    sets = {"selected": _sample(read_table(run.training_set(round_index)))}
    if has_manifest(run.candidates(round_index)):
        sets["candidates"] = _sample(for_training_goals(read_table(run.candidates(round_index))))
    prompts = list(dict.fromkeys(text for by_behavior in sets.values() for texts in by_behavior.values() for text in texts))
    vectors = _encode(recipe, [*goals[TRAIN], *goals[HELD_OUT], *prompts], engines or Engines())

    def known(texts: Sequence[str]) -> list[str]:
        return [text for text in texts if text in vectors]

    def of(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([vectors[text] for text in texts])

    held_out = known(goals[HELD_OUT])

    def near(texts: Sequence[str]) -> list[Neighbor]:
        return neighbors(known(texts), of(known(texts)), held_out, of(held_out)) if known(texts) and held_out else []

    config = recipe.evaluation
    spread = {
        name: meaning_diversity(
            {key: of(known(texts)) for key, texts in by_behavior.items() if known(texts)},
            confidence=config.confidence, resamples=config.bootstrap, seed=recipe.seed,
        )
        for name, by_behavior in sets.items()
    }  # fmt: skip
    trained_on = {text for texts in sets["selected"].values() for text in texts}
    nearest = {"training goals": near(goals[TRAIN]), "training prompts": near(sorted(trained_on - set(goals[TRAIN])))}
    same = {name: [pair for pair in found if pair.cosine >= SAME_MEANING] for name, found in nearest.items()}
    asked = {*goals[TRAIN], *goals[HELD_OUT], *prompts}
    failed = [f"{len(asked) - len(vectors)} of {len(asked)} texts could not be encoded"] if len(vectors) < len(asked) else []
    found = PromptMeaning(
        encoder=recipe.encoder.model,
        candidates=spread.get("candidates"),
        selected=spread["selected"],
        nearest={name: pairs[:NAMED] for name, pairs in nearest.items()},
        lines=[*failed, *(_line(name, pairs) for name, pairs in same.items() if pairs)],
    )
    write_bytes(path, (json.dumps(asdict(found), indent=1) + "\n").encode())
    return found.lines


def read_meaning(root: str) -> PromptMeaning | None:
    """What was measured beside a round's training set; None where nothing was.

    Raises:
        ShardError: the file is damaged.
    """
    path = join(root, FILE)
    if not exists(path):
        return None
    with well_formed(path):
        return TypeAdapter(PromptMeaning).validate_python(stored_object(path))


def _line(name: str, same: Sequence[Neighbor]) -> str:
    named = "; ".join(f"{pair.text!r} and {pair.other!r} ({pair.cosine:.2f})" for pair in same[:NAMED])
    return f"{len(same)} {name} mean what a held-out goal means (cosine {SAME_MEANING:g} and more): {named}"


def _sample(table: pa.Table) -> dict[str, list[str]]:
    """Prompts by behavior, at most `MOST_PROMPTS` of them, drawn by the digest of their ids."""
    rows = [row for row in table.select(["candidate_id", "behavior_id", "prompt"]).to_pylist() if (row["prompt"] or "").strip()]
    rows.sort(key=lambda row: row_id("meaning", row["candidate_id"]))
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in sorted(rows[:MOST_PROMPTS], key=lambda row: str(row["candidate_id"])):
        found[row["behavior_id"]].append(row["prompt"])
    return dict(found)


def _encode(recipe: Recipe, texts: Sequence[str], engines: Engines) -> dict[str, NDArray[np.float32]]:
    """The unit vector of each text that could be encoded, from one pool of encoders that is gone afterwards."""
    assert recipe.encoder is not None, "the caller has looked"
    distinct = list(dict.fromkeys(texts))
    chunks = [distinct[low : low + TEXTS_OF_CALL] for low in range(0, len(distinct), TEXTS_OF_CALL)]
    pool = recipe.cluster.encoder
    vectors: dict[str, NDArray[np.float32]] = {}
    with Workers("encoder", partial(engines.encoder, recipe.encoder, pool.threads), pool, recipe.timeouts) as workers:
        for index, found in workers.map(encode, [(EncodeCall(chunk, recipe.encoder.batch_size),) for chunk in chunks]):
            pairs = zip(chunks[index], found, strict=True)
            vectors |= {text: vector for text, vector in pairs if not isinstance(vector, Failure)}
    return vectors
