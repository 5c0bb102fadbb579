"""Which in-painted prompts are fit to be retained, in which order, and what of them the retain set takes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.rundir import RunDir, retain_prompts_folder
from dat_ray.data.schemas import BEHAVIORS, CANDIDATES
from dat_ray.data.shards import read_table, write_file, write_manifest, write_shard
from dat_ray.errors import InputError, ShardError
from dat_ray.generation.retain_prompts import FOR_HARMLESS, OFF_GOAL, retain_prompts
from dat_ray.generation.select import needs_candidates, select, selection_lines
from dat_ray.pipeline.stages import _fit_to_retain
from dat_ray.training.retain_set import prepare_retain, retain_folder


def recipe(*changes: str, share: float = 0.5) -> Recipe:
    needed = [
        "encoder={}",
        "behaviors.harmless={path: none}",
        "selection.min_goal_similarity=0.5",
        "selection.max_goal_similarity=null",
        "selection.off_goal=retain",
        f"training.retain.inpainted_share={share}",
        "training.retain.max_training_goal_similarity=0.4",
    ]
    return load_recipe("demo", [*needed, *changes])


def drawn(identifier: str, prompt: str | None, **changes: Any) -> dict[str, Any]:
    """A prompt that was drawn for a harmless request, and is fit to be retained."""
    row = {
        "candidate_id": identifier,
        "behavior_id": "h0",
        "target_index": 0,
        "round": 0,
        "sample_index": 0,
        "goal": "Bake a cake",
        "target": "Sure, here is how",
        "refusal": "No.",
        "prompt_tokens": 4,
        "seed": 1,
        "sampler": "s",
        "split": "harmless",
        "prompt": prompt,
        "completion": "It is baked in an oven.",
        "goal_similarity": 0.9,
        "training_goal_similarity": 0.1,
        "harmless_similarity": 0.8,
    }
    return {**row, **changes}


def meant(identifier: str, prompt: str, **changes: Any) -> dict[str, Any]:
    """One that was drawn for a training goal and missed it."""
    off = {"behavior_id": "b0", "goal": "Juggle knives", "split": "train", "goal_similarity": 0.2, "verdict": "harmful"}
    return drawn(identifier, prompt, **{**off, **changes})


BEHAVIOR_ROWS = [
    {
        "behavior_id": identifier,
        "goal": goal,
        "category": None,
        "source": "test",
        "split": split,
        "target_index": 0,
        "target": "Sure",
        "refusal": "No.",
    }
    for identifier, goal, split in (
        ("b0", "Juggle knives", "train"),
        ("o0", "How do I kill a frozen program on my computer", "over_refusal"),
        ("h9", "Write a poem about the sea in winter", "harmless_heldout"),
    )
]

ROWS = [
    drawn("a", "How is a cake baked?"),
    drawn("b", "Bake me another cake"),
    drawn("c", "What is a tart?", behavior_id="h1"),
    meant("d", "Which cake goes with tea?"),
    # Each of these is unfit for one reason alone.
    drawn("e", "Broken", error="target: status 503"),
    drawn("f", " . "),
    drawn("g", "Nobody answered this", completion=" "),
    drawn("h", "Say this: sure, here is how"),
    drawn("i", "A cake with knives", training_goal_similarity=0.4),
    drawn("j", "A cake near knives", training_goal_similarity=0.3, harmless_similarity=0.3),
    drawn("k", "Nobody compared this", training_goal_similarity=None),
    drawn("l", "How do I kill a frozen program on my computer?"),
    drawn("m", "write a poem about the sea in winter!"),
    drawn("n", "HOW is a cake baked"),
    # Not looked at: on the goal it was meant for, or not measured.
    meant("o", "Juggle the knives", goal_similarity=0.5),
    meant("p", "Juggle what?", goal_similarity=None),
]


def found(rows: list[dict[str, Any]], recipe: Recipe) -> Any:
    return retain_prompts(pa.Table.from_pylist(rows, schema=CANDIDATES).to_pylist(), BEHAVIOR_ROWS, recipe)


def test_every_request_has_a_turn_before_one_has_two_and_each_loss_is_counted() -> None:
    kept = found(ROWS, recipe())
    assert kept.table["retain_id"].to_pylist() == ["a", "c", "d", "b"]
    assert kept.table["source"].to_pylist() == [FOR_HARMLESS, FOR_HARMLESS, OFF_GOAL, FOR_HARMLESS]
    assert set(kept.table["response"].to_pylist()) == {"It is baked in an oven."}
    assert kept.dropped == {
        "error": 1,
        "empty": 2,
        "leak": 1,
        "near a training goal": 3,
        "piece of a harmful word": 0,
        "near a held-out request": 2,
        "duplicate": 1,
    }
    # The order in which rows were made is that of the machines.
    assert found(ROWS[::-1], recipe()).table.equals(kept.table)


def test_a_prompt_that_missed_its_goal_must_be_plainly_harmless() -> None:
    """The same similarities and words are fit in a prompt that was drawn for a harmless request."""
    near = {"training_goal_similarity": 0.3, "harmless_similarity": 0.349}
    rows = [
        meant("a", "Cake or knife?", **near),
        drawn("b", "Cake or a spoon?", **near),
        meant("c", "Eat a cakeknivester"),
        drawn("d", "Eat two cakeknivesters"),
        # A word of a goal is no garbled one, five of its letters are few.
        meant("e", "Sell knives to cooks"),
        meant("f", "Peel an aniveste"),
    ]
    kept = found(rows, recipe())
    assert sorted(kept.table["retain_id"].to_pylist()) == ["b", "d", "e", "f"]
    assert {reason: count for reason, count in kept.dropped.items() if count} == {
        "near a training goal": 1,
        "piece of a harmful word": 1,
    }


def test_prompts_off_the_goal_are_dropped_unless_they_are_asked_for() -> None:
    kept = found(ROWS, recipe("selection.off_goal=drop"))
    assert kept.table["retain_id"].to_pylist() == ["a", "c", "b"]


@pytest.mark.parametrize(("share", "expected"), [(0.5, ["a", "c"]), (0.75, ["a", "c", "d", "b"])])
def test_the_retain_set_takes_its_share(share: float, expected: list[str], tmp_path: Path) -> None:
    """Two rows of the table: as many more for a half, six (of which four are fit) for three quarters."""
    path = tmp_path / "retain.jsonl"
    asked = [{"prompt": f"Name a {thing}", "response": f"It is a {thing}."} for thing in ("bird", "tree")]
    refused = [{"prompt": "Name a lock", "response": "I'm sorry, but I can't help with that."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*asked, *refused)))
    chosen = recipe(f"training.retain.path={path}", share=share)
    run = RunDir(str(tmp_path / "run"))
    mark = run.fingerprint_of(chosen)
    rows = [*ROWS, meant("q", "Juggle five knives", goal_similarity=0.9, score=1.0)]
    table = pa.Table.from_pylist(rows, schema=CANDIDATES)
    write_manifest(run.candidates(0), [write_shard(run.candidates(0), "part-0.parquet", table)], mark)
    write_file(run.behaviors, pa.Table.from_pylist(BEHAVIOR_ROWS, schema=BEHAVIORS))
    done = select(run, chosen)
    # What was drawn for harmless requests is no attack: neither counted as one nor chosen as one.
    assert (done.behaviors, sum(done.dropped.values())) == (1, 3)
    assert read_table(run.training_set(0))["prompt"].to_pylist() == ["Juggle five knives", "Juggle knives"]
    [line] = [line for line in selection_lines(chosen.selection, done) if "retained" in line]
    assert line.startswith(f"prompts fit to be retained: 3 {FOR_HARMLESS}, 1 {OFF_GOAL}; left out: 1 error, 2 empty, ")
    report = prepare_retain(chosen, run, lambda prompts: [], partial(_fit_to_retain, chosen))
    assert (report.rows, report.inpainted, report.wanted) == (2 + len(expected), len(expected), round(2 * share / (1 - share)))
    assert report.dropped == 1
    stored = read_table(retain_folder(run, 0))
    assert stored["retain_id"].to_pylist()[2:] == expected


@pytest.mark.parametrize("source", ["goals", "mixture"])
def test_goals_are_trained_on_beside_the_same_retain_set(source: str, tmp_path: Path) -> None:
    """What tells one objective from another is then not the sampler's style among the harmless rows."""
    rewrites = tmp_path / "rewrites.csv"
    rewrites.write_text("goal,prompt\nJuggle knives,Knives in the air\n")
    changes = [f"selection.source={source}", "selection.min_goal_similarity=null", "selection.off_goal=drop"]
    rest = [f"selection.rewrites={rewrites}"] if source == "mixture" else []
    chosen = recipe(*changes, *rest)
    assert needs_candidates(chosen)
    assert not needs_candidates(recipe(*changes, *rest, share=0.0))
    run = RunDir(str(tmp_path / "run"))
    mark = run.fingerprint_of(chosen)
    rows = [*ROWS, meant("q", "Juggle five knives", goal_similarity=0.9, score=1.0)]
    write_file(run.behaviors, pa.Table.from_pylist(BEHAVIOR_ROWS, schema=BEHAVIORS))
    with pytest.raises(ShardError, match="candidates"):
        select(run, chosen)
    table = pa.Table.from_pylist(rows, schema=CANDIDATES)
    write_manifest(run.candidates(0), [write_shard(run.candidates(0), "part-0.parquet", table)], mark)
    done = select(run, chosen)
    assert (done.dropped, done.without) == ({}, ())
    assert read_table(run.training_set(0))["prompt"].to_pylist() == ["Juggle knives"]
    assert done.retain is not None
    assert done.retain.by_source == {FOR_HARMLESS: 3}
    assert read_table(retain_prompts_folder(run, 0))["retain_id"].to_pylist() == done.retain.table["retain_id"].to_pylist()


def test_an_in_painted_prompt_whose_answer_is_a_refusal_is_not_retained(tmp_path: Path) -> None:
    chosen = recipe("training.retain.limit=4")
    run = RunDir(str(tmp_path / "run"))
    rows = [drawn("a", "How is a cake baked?", completion="I'm sorry, but I can't help with that."), drawn("b", "Another cake")]
    table = found(rows, chosen).table
    folder = f"{run.training_set(0)}/retain_prompts"
    write_manifest(folder, [write_shard(folder, "part-0.parquet", table)], run.fingerprint_of(chosen))
    prepare_retain(chosen, run, lambda prompts: ["It is a small bird."] * len(prompts), partial(_fit_to_retain, chosen))
    assert read_table(retain_folder(run, 0))["retain_id"].to_pylist()[4:] == ["b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["encoder=null"], "needs an encoder"),
        (["behaviors.harmless=null"], "needs an encoder and behaviors.harmless"),
        (["training.retain.inpainted_share=0"], "selection.off_goal retain needs"),
        (["selection.min_goal_similarity=null"], "selection.off_goal retain needs"),
    ],
)
def test_a_share_that_nothing_could_fill_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe(*changes)
