"""Which prompts the distribution gap is measured on, what a model scores them with, and the figures that come of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dat_ray.config.evaluation import GapConfig
from dat_ray.config.models import TargetConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import BEHAVIORS, HELD_OUT, RISKS, TRAIN
from dat_ray.data.shards import read_table
from dat_ray.engines.calls import Failure, LikelihoodCall, logprob
from dat_ray.engines.torch_target import TorchTarget
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation import risk_rows
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.gap_metrics import distribution_gap, risk_by_behavior
from dat_ray.evaluation.gap_pairs import ScoredPair, drawn_pairs, in_order, measured_behaviors, written_pairs
from dat_ray.evaluation.questions import Behavior, Question
from dat_ray.evaluation.search.risk import RiskCall, score_rows
from dat_ray.evaluation.search.whitebox import Whitebox
from dat_ray.evaluation.store import ShardStore
from dat_ray.evaluation.suite import Suite
from dat_ray.measures.intervals import student_mean
from dat_ray.progress import Progress, ProgressCounter
from tests.unit.evaluation.test_drift import Here
from tests.unit.measures.limits import covers
from tests.unit.models.tiny import make_model, make_tokenizer

PAIRS = [
    ScoredPair("training", "b0", "c0", "How are you today?", "Sure, here is how", "No.", False),
    ScoredPair("training", "b1", "c1", "Tell me of dogs", "Sure, the quick fox", "I will not.", False),
    ScoredPair("rewrites", "b2", "q0", "fox", "Sure", "No.", False, "past"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("gap") / "model"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return str(root)


def recipe(folder: str = "m", source: str = "candidates", **gap: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "tiny",
            "behaviors": {"path": "none", "heldout": {"path": "none"}},
            "sampler": {"model": "none"},
            "target": {"model": folder, "backend": "torch", "dtype": "float32", "max_model_len": 64},
            "selection": {"source": source},
            "training": {
                "harmful_rows": 2,
                "retain_rows": 0,
                "retain_weight": 0.0,
                "attack": {"steps": 2, "step_size": 0.3},
            },
            "evaluation": {"gap": gap},
        }
    )


def behaviors(train: int = 3, held_out: int = 3, targets: int = 2) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "behavior_id": f"{split}{number}",
                "goal": f"goal {split}{number}",
                "category": None,
                "source": "here",
                "split": split,
                "target_index": target,
                "target": f"Sure {split}{number} {target}",
                "refusal": f"No {split}{number} {target}",
            }
            for split, count in ((TRAIN, train), (HELD_OUT, held_out), ("over_refusal", 2))
            for number in range(count)
            for target in range(targets)
        ],
        schema=BEHAVIORS,
    )


def kept(behavior: str, number: int, prompt: str | None = None) -> dict[str, Any]:
    text = prompt or f"prompt {number} of {behavior}"
    return {"candidate_id": f"{behavior}-{number}", "behavior_id": behavior, "prompt": text, "target": "Sure", "refusal": "No"}


def test_a_goal_beside_drawn_prompts_is_none_of_them_and_is_what_a_run_of_goals_trains_on() -> None:
    rows = [kept("train0", 0), kept("train0", 1, "goal train0"), kept("elsewhere", 0)]
    goals = {"train0": "goal train0"}
    assert [one.prompt for one in drawn_pairs("training", rows, goals, recipe())] == ["prompt 0 of train0"]
    trained = drawn_pairs("training", rows[1:], goals, recipe(source="goals"))
    assert [(one.prompt, one.is_goal) for one in trained] == [("goal train0", True)]
    # Fresh prompts are drawn whatever the run trained on.
    assert not drawn_pairs("fresh_prompts", rows[1:], goals, recipe(source="goals"))


def test_so_many_prompts_a_behavior_the_same_ones_in_any_order() -> None:
    rows = [kept(behavior, number) for behavior in ("train0", "train1") for number in range(9)]
    goals = {"train0": "", "train1": ""}
    found = drawn_pairs("training", rows, goals, recipe(prompts=3))
    assert [one.behavior_id for one in found] == ["train0"] * 3 + ["train1"] * 3
    shuffled = random.Random(1).sample(rows, len(rows))
    assert drawn_pairs("training", shuffled, goals, recipe(prompts=3)) == found
    assert drawn_pairs("training", rows, goals, recipe(prompts=3, seed=1)) != found
    assert len(drawn_pairs("training", rows, goals, recipe(prompts=None))) == 18


def test_so_many_behaviors_of_each_split() -> None:
    table = behaviors(train=6, held_out=4)
    found = measured_behaviors(table, recipe(behaviors=2))
    assert {split: len(ids) for split, ids in found.items()} == {TRAIN: 2, HELD_OUT: 2}
    assert measured_behaviors(table.take(list(range(table.num_rows))[::-1]), recipe(behaviors=2)) == found
    assert {len(ids) for ids in measured_behaviors(table, recipe()).values()} == {6, 4}


def test_a_file_of_a_samplers_prompts_is_no_persons(tmp_path: Path) -> None:
    files = []
    for name, prompts in (("people", ("Say it", "Tell it")), ("drawn", ("It it",))):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": "heldout0", "prompt": prompt}) + "\n" for prompt in prompts))
        files.append({"path": str(path)})

    def measured(**drawn: bool) -> list[str]:
        tree = recipe(prompts=None).model_dump(mode="json")
        tree["evaluation"] |= {"attacks": ["prompts"], "prompts": [files[0], files[1] | drawn]}
        suite = Suite(
            Recipe.model_validate(tree),
            RunDir(str(tmp_path / "run")),
            "default",
            [Model("m", None, "w")],
            behaviors(),
            {},
            {"m": []},
        )
        assert [attack.name for attack in suite.attacks] == ["prompts_people", "prompts_drawn"]
        return sorted(one.prompt for one in suite.pairs["m"])

    assert measured() == ["It it", "Say it", "Tell it"]
    assert measured(in_gap=False) == ["Say it", "Tell it"]


def test_people_s_prompts_go_with_a_behaviors_targets_in_turn() -> None:
    table = behaviors(held_out=2)
    held_out = [Behavior(f"heldout{at}", "g", ((0, f"Sure heldout{at} 0"), (1, f"Sure heldout{at} 1"))) for at in (0, 1)]
    asked = [Question("prompts_x", "heldout0", at, "g", f"prompt {at}", variant=f"v{at}") for at in range(3)]
    found = written_pairs([*asked, Question("prompts_x", "heldout1", 0, "g", "other")], held_out, table, recipe())
    by_prompt = {one.prompt: (one.target, one.refusal, one.variant, one.prompt_set) for one in found}
    assert by_prompt["prompt 0"] == ("Sure heldout0 0", "No heldout0 0", "v0", "rewrites")
    assert by_prompt["prompt 1"] == ("Sure heldout0 1", "No heldout0 1", "v1", "rewrites")
    assert by_prompt["prompt 2"][0] == "Sure heldout0 0"
    assert by_prompt["other"][0] == "Sure heldout1 0"
    # Behaviors that are not measured have none.
    few = written_pairs(asked, held_out, table, recipe(behaviors=1))
    measured = measured_behaviors(table, recipe(behaviors=1))[HELD_OUT]
    assert {one.behavior_id for one in few} <= measured


def whitebox(folder: str, config: Recipe) -> Whitebox:
    return Whitebox(config.target, 1, None, config.evaluation)


def test_plain_scores_are_the_targets_own_and_a_row_that_is_too_long_fails_alone(folder: str) -> None:
    config = recipe(folder)
    rows = [(one.prompt, one.target, one.refusal) for one in PAIRS]
    found = score_rows(whitebox(folder, config), RiskCall([rows[0], ("dog " * 80, "Sure", "No."), *rows[1:]], config.training))
    assert isinstance(found[1], Failure)
    assert "raise it" in found[1].error
    scored = [one for one in found if not isinstance(one, Failure)]
    target = TorchTarget(TargetConfig.model_validate(config.target.model_dump()), folder, 1)
    assert [one.plain for one in scored] == pytest.approx(
        logprob(target, LikelihoodCall([(prompt, response) for prompt, response, _ in rows], 4)), abs=1e-4
    )
    # Two steps of three tenths of an embedding are enough to make each response likelier here.
    assert all(one.attacked is not None and one.attacked > one.plain for one in scored)


class Counter(Progress):
    """Counts nothing."""

    def __init__(self) -> None:
        pass

    def update(self, done: int, note: str = "") -> None:
        pass


def store(tmp_path: Path, rows: int = 2, total: int = 10) -> ShardStore:
    return ShardStore(str(tmp_path / "risks"), RISKS, "risk_id", ErrorLimit(total, 0.1, "rate"), rows)


def measure(
    folder: str, where: ShardStore, model: Model, pairs: Sequence[ScoredPair] = PAIRS, config: Recipe | None = None
) -> list[dict[str, Any]]:
    return risk_rows.measure_risks(config or recipe(folder), "default", model, pairs, where, ProgressCounter(Counter()))


def test_a_model_scores_each_pair_once_and_goes_on_where_it_stopped(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def workers(config: Recipe, model: Model) -> Here:
        loaded.append(model.name)
        return Here(whitebox(folder, config))

    monkeypatch.setattr(risk_rows, "whitebox_workers", workers)
    model = Model("base", None, "w0")
    first = measure(folder, store(tmp_path), model)
    assert [row["prompt"] for row in first] == [one.prompt for one in PAIRS]
    assert [row["variant"] for row in first] == [None, None, "past"]
    assert len({row["risk_id"] for row in first}) == 3
    shards = sorted((tmp_path / "risks").glob("part-*"))
    assert len(shards) == 2
    shards[1].unlink()
    assert measure(folder, store(tmp_path), model) == first
    assert measure(folder, store(tmp_path), model) == first
    assert loaded == ["base", "base"]
    # Another adapter under the same name has other rows.
    with pytest.raises(InputError, match="rows of other settings or of another adapter"):
        measure(folder, store(tmp_path), Model("base", None, "w1"))
    # Too many that cannot be scored stop the stage.
    long = [ScoredPair("training", "b", f"l{at}", "dog " * 80, "Sure", "No", False) for at in range(2)]
    with pytest.raises(DatError, match=r"2 rows failed, rate = 0\.1 allows"):
        measure(folder, store(tmp_path / "other"), model, long)


class Scores:
    """Workers that score a prompt by its length and note it."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def __enter__(self) -> Scores:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: object, payloads: Sequence[tuple[RiskCall]]) -> Iterator[tuple[int, list[tuple[float, None]]]]:
        for index, (call,) in enumerate(payloads):
            self._asked += [prompt for prompt, _, _ in call.rows]
            yield index, [(-float(len(prompt)), None) for prompt, _, _ in call.rows]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(risk_rows, "whitebox_workers", lambda recipe, model: Scores(found))
    return found


def a_set(name: str, count: int = 3) -> list[ScoredPair]:
    return [ScoredPair(name, f"b{at}", f"{name} {at}", f"{name}, prompt {at}", "Sure", "No.", False) for at in range(count)]


BASE_MODEL = Model("base", None, "w0")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # An arm, and a seed, that are put between the others; and runs without the one whose sets are the base model's own.
        (
            ("training", "training/cat@1", "fresh_prompts", "rewrites"),
            ("training", "training/lat@1", "training/cat@1", "training/cat@2", "fresh_prompts", "rewrites"),
        ),
        (("training/cat@1", "rewrites"), ("training", "training/cat@1", "fresh_prompts", "fresh_targets", "rewrites")),
        (("fresh_prompts",), ("training/cat@1", "fresh_prompts")),
    ],
)
def test_a_set_that_is_added_leaves_the_scores_of_the_others(
    asked: list[str], tmp_path: Path, before: Sequence[str], after: Sequence[str]
) -> None:
    def pairs(names: Sequence[str]) -> list[ScoredPair]:
        return in_order([pair for name in names for pair in a_set(name)])

    first = measure("m", store(tmp_path), BASE_MODEL, pairs(before))
    asked.clear()
    found = measure("m", store(tmp_path), BASE_MODEL, pairs(after))
    assert [row["prompt"] for row in found] == [pair.prompt for pair in pairs(after)]
    assert [row for row in found if row["prompt_set"] in before] == first
    assert sorted(asked) == sorted(pair.prompt for name in set(after) - set(before) for pair in a_set(name))


def test_shards_that_an_older_version_cut_across_sets_are_gone_on_with(asked: list[str], tmp_path: Path) -> None:
    pairs = in_order([*a_set("training"), *a_set("training/cat@1"), *a_set("rewrites")])
    whole = measure("m", store(tmp_path / "whole"), BASE_MODEL, pairs)
    older = store(tmp_path / "older", rows=4)
    for chunk in older.cut("base", [row["risk_id"] for row in whole], whole)[:2]:
        older.put(chunk, chunk.items)
    asked.clear()
    # All rows of two sets are there, and of the third those of one shard, which is cut anew.
    later = store(tmp_path / "older")
    assert measure("m", later, BASE_MODEL, pairs) == whole
    assert asked == ["rewrites, prompt 2"]
    later.publish("mark")
    assert sorted(row["risk_id"] for row in read_table(str(tmp_path / "older/risks")).to_pylist()) == sorted(
        row["risk_id"] for row in whole
    )


def test_published_rows_stand_by_set_as_the_report_has_them(asked: list[str], tmp_path: Path) -> None:
    sets = ["training", "training/cat@1", "training/dat@10", "fresh_prompts", "fresh_targets", "rewrites"]
    where = store(tmp_path, total=100)
    measure("m", where, BASE_MODEL, in_order([pair for name in reversed(sets) for pair in a_set(name)]))
    where.publish("mark")
    found = read_table(str(tmp_path / "risks"))["prompt_set"].to_pylist()
    assert found == [name for name in sets for _ in range(3)]
    names = {path.name for path in (tmp_path / "risks").glob("*.parquet")}
    assert "part-base-0-training-dat@10-00001.parquet" in names
    assert len(names) == 2 * len(sets)


def risk(prompt_set: str, behavior: str, plain: float | None, attacked: float | None, **changes: Any) -> dict[str, Any]:
    row = {"prompt_set": prompt_set, "behavior_id": behavior, "plain": plain, "attacked": attacked, "is_goal": False}
    return {**row, "error": None if plain is not None else "target: too long", **changes}


ROWS = [
    risk("training", "a", -4.0, -2.0),
    risk("training", "a", -14.0, -4.0),
    risk("training", "b", -6.0, -3.0, is_goal=True),
    risk("training", "c", None, None),
    risk("fresh_prompts", "a", -5.0, -1.0),
    risk("fresh_prompts", "b", -5.0, -2.0),
    risk("rewrites", "x", -1.0, -0.5),
    risk("rewrites", "y", -3.0, -0.5),
]


def test_each_behavior_has_one_vote_and_the_bound_acts_on_prompts() -> None:
    assert risk_by_behavior(ROWS, "training", "plain", 10.0) == {"a": -7.0, "b": -6.0}
    found = distribution_gap(ROWS, GapConfig(bound=10.0), 3, 0.95)
    trained = found.sets["training"]
    assert (trained.prompts, trained.goals, trained.errors) == (3, 1, 1)
    assert trained.plain.mean == pytest.approx(-6.5)
    assert trained.plain.clipped.rate == pytest.approx(1 / 3)
    assert trained.attacked is not None
    assert (trained.attacked.mean, trained.attacked.clipped.rate, trained.attacked.n) == (-3.0, 0.0, 2)
    assert covers(trained.plain, -6.5)
    assert (trained.plain.low, trained.plain.high) == (
        student_mean([-7.0, -6.0]).low,
        student_mean([-7.0, -6.0]).high,
    )
    assert list(found.sets) == ["training", "fresh_prompts", "rewrites"]


def test_gaps_are_between_the_sets_that_are_there() -> None:
    found = distribution_gap(ROWS, GapConfig(bound=10.0), 3, 0.95)
    assert list(found.gaps) == ["new_prompts", "whole"]
    step = found.gaps["new_prompts"]
    assert (step.first, step.second, step.paired) == ("training", "fresh_prompts", True)
    # a: -5 + 7, b: -5 + 6.
    assert (step.plain.gap, step.plain.n) == pytest.approx((1.5, 2))
    assert step.plain.least_distance == pytest.approx(1.5 / 20)
    whole = found.gaps["whole"]
    assert not whole.paired
    assert whole.plain.gap == pytest.approx(-2.0 + 6.5)
    assert whole.attacked is not None
    assert whole.attacked.gap == pytest.approx(-0.5 + 3.0)


def test_an_attack_without_steps_measures_the_plain_gap_alone() -> None:
    found = distribution_gap([row | {"attacked": None} for row in ROWS], GapConfig(), 0, 0.95)
    assert {one.attacked for one in found.sets.values()} == {None}
    assert {one.attacked for one in found.gaps.values()} == {None}


def test_pairs_stand_by_set_whoever_comes_first() -> None:
    assert [one.prompt_set for one in in_order(PAIRS[::-1])] == ["training", "training", "rewrites"]
    more = replace(PAIRS[0], prompt_set="training/cat@1")
    found = [one.prompt_set for one in in_order([*PAIRS[::-1], more])]
    assert found == ["training", "training", "training/cat@1", "rewrites"]
