"""Replays, with judges in this process: what is read again, and which figures are made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.config.evaluation import GapConfig
from dat_ray.data.schemas import ATTEMPTS, RISKS
from dat_ray.data.shards import read_manifest, read_table, write_manifest, write_shard
from dat_ray.engines.base import Judgment
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.gap_metrics import distribution_gap
from dat_ray.evaluation.gap_results import DistributionGap
from dat_ray.evaluation.questions import UNREADABLE
from dat_ray.evaluation.results import Drift, ModelMetrics, load_metrics, store_metrics
from dat_ray.measures.intervals import cluster_bootstrap, wilson
from dat_ray.pipeline.evaluations import rescore
from tests.unit.measures.limits import limits
from tests.unit.pipeline.test_trusted_run import STORED, HereWorkers


class Reader:
    """A judge of harm that notes what it reads."""

    name, fingerprint, is_proxy, deviations = "reader", "0", False, ()

    def __init__(self) -> None:
        self.read: list[str] = []

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        self.read += completions
        return [Judgment("not_harmful", 0.0) for _ in completions]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Reads for every judge, without Ray."""
    found = Reader()
    monkeypatch.setattr("dat_ray.evaluation.rescore.start_ray", lambda cluster: nullcontext())
    monkeypatch.setattr("dat_ray.evaluation.judges.Workers", lambda role, *_: HereWorkers(role, lambda: found))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished evaluation without its run."""
    return Path(shutil.copytree(STORED / "evaluation" / "default", tmp_path / "default"))


def rewrite(folder: Path, change: Any) -> None:
    """Changes the rows of an evaluation, each in place."""
    manifest = read_manifest(str(folder))
    files = []
    for file in manifest.files:
        rows = [row | change(row) for row in pq.read_table(folder / file.path).to_pylist()]
        files.append(write_shard(str(folder), file.path, pa.Table.from_pylist(rows, schema=ATTEMPTS)))
    write_manifest(str(folder), files, manifest.fingerprint)


MODEL = "adapted"
# Of each row, and of each prompt: (set, behavior, plain, attacked).
MOVED = {"r1": 0.1, "r2": 0.3, "r3": 0.2, "r4": 0.9}
SCORED = [
    *(
        (prompt_set, f"t{at}", -4.0 - at * shift, -2.0)
        for prompt_set, shift in (("training", 1.0), ("fresh_prompts", 0.7))
        for at in range(4)
    ),
    *(("fresh_targets", f"h{at}", -3.0 - 0.5 * at, -1.0 - at) for at in range(3)),
]
SHARE, MEAN = Benchmark(value=0.7, low=0.55, high=0.81, stderr=0.065, n=50), Benchmark(value=3.2, low=3.0, high=3.4, stderr=0.1)


def risks() -> list[dict[str, Any]]:
    texts = {"source_id": "c", "variant": None, "prompt": "p", "target": "t", "is_goal": False, "error": None}
    return [
        {
            "risk_id": str(number),
            "model": MODEL,
            "prompt_set": name,
            "behavior_id": behavior,
            "plain": plain,
            "attacked": attacked,
        }
        | texts
        for number, (name, behavior, plain, attacked) in enumerate(SCORED)
    ]


def gap(confidence: float) -> DistributionGap:
    return distribution_gap(risks(), GapConfig(), 3, confidence)


def drift(confidence: float) -> Drift:
    found = cluster_bootstrap({key: [one] for key, one in MOVED.items()}, confidence=confidence, resamples=50, seed=7)
    return Drift(mean=found.value, low=found.low, high=found.high, n=found.n, left_out=1, cut=2)


@pytest.fixture
def measured(folder: Path) -> Path:
    """One that has measured drift, benchmarks and distribution gap of a model."""
    before = load_metrics(str(folder))
    effects = {"kl_drift": drift(0.95), "utility": {"arc": {"acc": SHARE, "bits": MEAN}}, "gap": gap(0.95)}
    model = before.models[MODEL].model_copy(update=effects)
    store_metrics(str(folder), before.model_copy(update={"models": before.models | {MODEL: model}}))
    root, table = str(folder / "risks"), pa.Table.from_pylist(risks(), schema=RISKS)
    write_manifest(root, [write_shard(root, "part-00000.parquet", table)], "mark")
    weights = json.loads((folder / "replay.json").read_text())["models"][MODEL]
    found = {"weights": weights, "found": {"values": MOVED, "left_out": ["r0"], "cut": 2}}
    (folder / "side_effects").mkdir()
    (folder / "side_effects" / f"retain-drift-{MODEL}.json").write_text(json.dumps(found))
    return folder


def replayed(folder: Path, suite: str, *settings: str) -> ModelMetrics:
    rescore(str(folder), "refusal-opening", settings, suite)
    return load_metrics(str(folder.parent / suite)).models[MODEL]


def test_a_replay_at_another_confidence_has_all_intervals_at_it(measured: Path, reader: Reader) -> None:
    again = replayed(measured, "again")
    assert (again.kl_drift, again.gap) == (drift(0.95), gap(0.95))
    surer = replayed(measured, "surer", "evaluation.confidence=0.99")
    assert load_metrics(str(measured.parent / "surer")).confidence == 0.99
    assert (surer.kl_drift, surer.gap) == (drift(0.99), gap(0.99))
    assert gap(0.99) != gap(0.95)
    share = wilson(35, 50, 0.99)
    assert limits(surer.utility["arc"]["acc"]) == (share.low, share.high)
    # 2.5758 standard errors to either side.
    assert limits(surer.utility["arc"]["bits"]) == pytest.approx((3.2 - 0.25758, 3.2 + 0.25758), abs=1e-5)
    # A replay can be replayed.
    back = replayed(measured.parent / "surer", "back", "evaluation.confidence=0.9")
    assert (back.kl_drift, back.gap) == (drift(0.9), gap(0.9))


def test_limits_of_which_nothing_is_stored_are_left_out_at_another_confidence(
    measured: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(measured / "risks")
    shutil.rmtree(measured / "side_effects")
    before = load_metrics(str(measured))
    bare = SHARE.model_copy(update={"stderr": None, "n": None})
    model = before.models[MODEL].model_copy(update={"utility": {"arc": {"acc": bare}}})
    store_metrics(str(measured), before.model_copy(update={"models": before.models | {MODEL: model}}))
    again = replayed(measured, "again")
    assert (again.kl_drift, again.gap, again.utility) == (drift(0.95), gap(0.95), {"arc": {"acc": bare}})
    assert "not stored" not in capsys.readouterr().err

    surer = replayed(measured, "surer", "evaluation.confidence=0.8")
    assert surer.kl_drift == drift(0.95).model_copy(update={"low": None, "high": None})
    assert surer.utility["arc"]["acc"] == bare.model_copy(update={"low": None, "high": None})
    assert surer.gap is not None
    step, same = surer.gap.gaps["new_prompts"].plain, gap(0.95).gaps["new_prompts"].plain
    assert (step.gap, step.n, step.low, step.high) == (same.gap, same.n, None, None)
    told = capsys.readouterr().err
    for what in ("drift", "arc, acc", "distribution gap"):
        assert f"{MODEL}: {what}: its values are not stored: no interval at a confidence of 0.8" in told


def test_figures_that_somebody_altered_lead_to_no_file_elsewhere(measured: Path, reader: Reader) -> None:
    (measured.parent / "secret-drift-adapted.json").write_text("{}")
    tree = json.loads((measured / "metrics.json").read_text())
    tree["models"][MODEL]["kl_drift"]["data"] = "../../secret"
    tree["models"]["../../secret"] = tree["models"][MODEL]
    (measured / "metrics.json").write_text(json.dumps(tree))
    assert replayed(measured, "again").kl_drift == drift(0.95)
    assert sorted(path.name for path in measured.parent.iterdir()) == ["again", "default", "secret-drift-adapted.json"]
    assert [path.name for path in (measured.parent / "again/side_effects").iterdir()] == [f"retain-drift-{MODEL}.json"]


def test_an_empty_translation_that_an_older_version_stored_is_no_verdict(folder: Path, reader: Reader) -> None:
    before = read_table(str(folder)).to_pylist()
    attacked = [row["attempt_id"] for row in before if row["attack"] == "direct" and row["completion"]]
    instead = dict(zip(attacked, ("", " \n", "in English"), strict=False))
    rewrite(folder, lambda row: {"judged_text": instead.get(row["attempt_id"])})
    rescore(str(folder), "refusal-opening", [], "again")
    found = {row["attempt_id"]: row for row in read_table(str(folder.parent / "again")).to_pylist()}
    assert [(found[one]["verdict"], found[one]["error"]) for one in attacked[:3]] == [
        (None, f"{UNREADABLE} is empty"),
        (None, f"{UNREADABLE} is empty"),
        ("not_harmful", None),
    ]
    assert "in English" in reader.read
    assert not {"", " \n"} & set(reader.read)
