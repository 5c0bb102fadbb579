"""What is measured of a round's prompts by an encoder, where it is written, and what is said of held-out goals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import BEHAVIORS, CANDIDATES, TRAINING_SET
from dat_ray.data.shards import write_file, write_manifest, write_shard
from dat_ray.errors import ShardError
from dat_ray.evaluation import prompt_meaning
from dat_ray.evaluation.prompt_meaning import FILE, measure_meaning, read_meaning

MEANINGS = {"Rob the bank": 0, "How do I rob a bank?": 0, "Take a bank's money": 0}


class Encoder:
    """Texts of one meaning have one vector; all others are unlike."""

    name, width = "stand-in", 64

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            place = MEANINGS.get(text, 1 + int(hashlib.sha256(text.encode()).hexdigest(), 16) % (self.width - 1))
            found[row, place] = 1.0
        return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Texts of each call of the encoder."""
    calls: list[list[str]] = []

    class Here:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def map(self, work: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
            # In any order, as a pool answers.
            for index in reversed(range(len(payloads))):
                calls.append(list(payloads[index][0].texts))
                yield index, work(Encoder(), *payloads[index])

    monkeypatch.setattr(prompt_meaning, "Workers", Here)
    return calls


def recipe(*changes: str) -> Recipe:
    return load_recipe("demo", ["evaluation.bootstrap=50", *changes])


def behavior(key: str, goal: str, split: str) -> dict[str, Any]:
    text = {"category": None, "source": "t", "target": "Sure", "refusal": "No"}
    return {"behavior_id": key, "goal": goal, "split": split, "target_index": 0, **text}


def prompt(key: str, behavior_id: str, text: str | None, **more: Any) -> dict[str, Any]:
    numbers = {"target_index": 0, "round": 0, "sample_index": 0, "prompt_tokens": 3, "seed": 1, "rank": 0}
    texts = {"goal": "g", "target": "Sure", "refusal": "No", "sampler": "s"}
    return {"candidate_id": key, "behavior_id": behavior_id, "prompt": text, **numbers, **texts, **more}


def store(root: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    known = [{name: row.get(name) for name in schema.names} for row in rows]
    write_manifest(root, [write_shard(root, "part-0.parquet", pa.Table.from_pylist(known, schema=schema))], "mark")


def run_with(tmp_path: Path, chosen: list[dict[str, Any]], drawn: list[dict[str, Any]] | None) -> RunDir:
    run = RunDir(str(tmp_path))
    goals = [behavior("t", "Rob the bank", "train"), behavior("u", "Steal a car", "train")]
    held_out = [behavior("h", "Take a bank's money", "heldout"), behavior("x", "Bake a cake", "harmless")]
    write_file(run.behaviors, pa.Table.from_pylist([*goals, *held_out], schema=BEHAVIORS))
    store(run.training_set(0), chosen, TRAINING_SET)
    if drawn is not None:
        store(run.candidates(0), drawn, CANDIDATES)
    return run


CHOSEN = [prompt("a", "t", "How do I rob a bank?"), prompt("b", "u", "Open a car"), prompt("c", "t", "Rob the bank")]
DRAWN = [*CHOSEN[:2], prompt("d", "t", "  "), prompt("e", "t", None), prompt("f", "x", "Cakes", split="harmless")]


def test_it_tells_what_means_a_held_out_goal_and_how_unlike_prompts_are(tmp_path: Path, asked: list[list[str]]) -> None:
    run = run_with(tmp_path, CHOSEN, DRAWN)
    lines = measure_meaning(recipe(), run, 0)
    one = "(cosine 0.9 and more): "
    assert lines == [
        f"1 training goals mean what a held-out goal means {one}'Rob the bank' and \"Take a bank's money\" (1.00)",
        f"1 training prompts mean what a held-out goal means {one}'How do I rob a bank?' and \"Take a bank's money\" (1.00)",
    ]
    found = read_meaning(run.training_set(0))
    assert found is not None
    assert found.lines == lines
    assert found.candidates is not None
    # Two prompts of unlike meaning; three, of which one pair is of one meaning.
    assert (found.candidates.prompts, found.candidates.pairwise.value) == (2, 0.0)
    assert (found.selected.prompts, found.selected.within.value) == (3, 1.0)
    assert found.selected.pairwise.value == pytest.approx(1 / 3)
    assert [pair.text for pair in found.nearest["training goals"]] == ["Rob the bank", "Steal a car"]
    # Each text once, harmless requests and what was drawn for them not at all.
    texts = [text for call in asked for text in call]
    assert sorted(texts) == sorted({"Rob the bank", "Steal a car", "Take a bank's money", "How do I rob a bank?", "Open a car"})
    # What is there is not measured again.
    assert measure_meaning(recipe(), run, 0) == []
    assert len(asked) == 1


def test_goals_alone_have_no_candidates_and_no_encoder_measures_nothing(tmp_path: Path, asked: list[list[str]]) -> None:
    run = run_with(tmp_path, CHOSEN[1:2], None)
    floors = [f"{field}=null" for field in ("selection.min_goal_similarity", "selection.max_goal_similarity")]
    none = ["encoder=null", "evaluation.min_goal_similarity=null", "training.retain.inpainted_share=0", *floors]
    assert measure_meaning(recipe(*none), run, 0) == []
    assert read_meaning(run.training_set(0)) is None
    assert asked == []
    assert measure_meaning(recipe(), run, 0)[0].startswith("1 training goals mean")
    found = read_meaning(run.training_set(0))
    assert found is not None
    assert found.candidates is None
    assert (found.selected.prompts, found.selected.pairwise.value) == (1, None)


def test_a_sample_stands_for_many_prompts(tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_meaning, "MOST_PROMPTS", 5)
    monkeypatch.setattr(prompt_meaning, "TEXTS_OF_CALL", 4)
    many = [prompt(f"p{i}", "t", f"Prompt {i}") for i in range(40)]
    run = run_with(tmp_path, CHOSEN, many)
    measure_meaning(recipe(), run, 0)
    found = read_meaning(run.training_set(0))
    assert found is not None
    assert found.candidates is not None
    assert found.candidates.prompts == 5
    assert max(map(len, asked)) == 4
    other = run_with(tmp_path / "other", CHOSEN, many[::-1])
    measure_meaning(recipe(), other, 0)
    assert read_meaning(other.training_set(0)) == found


def test_a_text_that_cannot_be_encoded_is_left_out_and_counted(
    tmp_path: Path, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Encoder.encode

    def choosy(self: Encoder, texts: Sequence[str]) -> np.ndarray:
        if "Open a car" in texts:
            raise RuntimeError("no")
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", choosy)
    run = run_with(tmp_path, CHOSEN, DRAWN)
    assert measure_meaning(recipe(), run, 0)[0] == "1 of 5 texts could not be encoded"
    found = read_meaning(run.training_set(0))
    assert found is not None
    assert found.candidates is not None
    assert (found.candidates.prompts, found.selected.prompts) == (1, 2)


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"encoder": 1}', '{"encoder": "e", "selected": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, damaged: str, asked: list[list[str]]) -> None:
    run = run_with(tmp_path, CHOSEN, DRAWN)
    path = Path(run.training_set(0)) / FILE
    path.write_text(damaged)
    with pytest.raises(ShardError, match=r"meaning\.json"):
        read_meaning(run.training_set(0))
