"""The whole pipeline on real weights, vLLM and Ray, small: what `make demo` does, by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dat_ray.data.shards import read_manifest, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SMALL = (
    "behaviors.limit=3",
    "behaviors.targets_per_behavior=1",
    "behaviors.heldout.limit=3",
    "behaviors.heldout.targets_per_behavior=1",
    "behaviors.over_refusal.limit=4",
    "behaviors.harmless.limit=2",
    "behaviors.harmless.targets_per_behavior=1",
    "behaviors.harmless_heldout.limit=2",
    "behaviors.harmless_heldout.targets_per_behavior=1",
    "sampler.steps=4",
    "generation.samples_per_target=2",
    # So few prompts of so few steps: some should count, whatever the recipe's floors.
    "selection.min_goal_similarity=0.1",
    "evaluation.min_goal_similarity=0.1",
    "training.updates=2",
    "training.harmful_rows=2",
    "training.retain_rows=2",
    "training.attack.steps=1",
    "training.retain.limit=4",
    "evaluation.inpainting_samples=1",
    "evaluation.kl_rows=8",
    "evaluation.harmless_inpainting_samples=1",
)


def _dat(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-m", "dat_ray.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished small run and what it printed."""
    root = tmp_path_factory.mktemp("pipeline") / "run"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    done = _dat("run", "demo", "--run-dir", str(root), *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    return root, done.stderr


def test_every_stage_leaves_its_output(finished: tuple[Path, str]) -> None:
    root, _ = finished
    candidates = read_table(str(root / "candidates" / "round-0"))
    # Two for each of three goals, and one for each of two harmless requests.
    assert candidates.num_rows == 8
    assert candidates["error"].null_count == 8
    assert all(candidates["prompt"].to_pylist())
    assert all(value < 0 for value in candidates["target_logprob"].to_pylist())
    assert read_manifest(str(root / "training_set" / "round-0")).rows >= 3
    adapter = root / "training" / "round-0" / "adapter"
    assert {"adapter_model.safetensors", "adapter_config.json", "dat_adapter.json"} <= {f.name for f in adapter.iterdir()}
    updates = [json.loads(line) for line in (root / "training" / "round-0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in updates] == [0, 1]


def test_metrics_have_the_published_shape(finished: tuple[Path, str]) -> None:
    root, _ = finished
    metrics = json.loads((root / "evaluation" / "default" / "metrics.json").read_text())
    assert metrics["judge"]["name"] == "refusal-rules"
    assert metrics["judge"]["is_proxy"] is True
    assert set(metrics["models"]) == {"base", "adapted"}
    for model in metrics["models"].values():
        assert set(model["attacks"]) == {"direct", "inpainting"}
        for found in model["attacks"].values():
            assert 0 <= found["low"] <= found["asr"] <= found["high"] <= 1
            assert found["n_behaviors"] <= 3
        for refused in (model["over_refusal"], model["over_refusal_inpainted"]):
            assert 0 <= refused["low"] <= refused["rate"] <= refused["high"] <= 1
        assert model["target_logprob"]["mean"] < 0


def test_the_report_and_the_cost_of_each_stage_are_there(finished: tuple[Path, str]) -> None:
    root, printed = finished
    page = (root / "report" / "index.html").read_text()
    assert "refusal-rules" in page
    assert "proxy" in page
    stages = [json.loads(line) for line in (root / "logs" / "stages.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in stages] == ["generate", "select", "train", "evaluate", "report"]
    assert all(line["seconds"] > 0 for line in stages)
    assert (root / "report" / "index.html").as_uri() in printed
    # Libraries' log lines name their source.
    assert re.findall(r".*\.(?:cc|py):\d+.*", printed) == []


def test_the_same_command_again_does_nothing_twice(finished: tuple[Path, str]) -> None:
    root, _ = finished
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")}
    settings = [word for setting in SMALL for word in ("--set", setting)]
    again = _dat("run", "demo", "--run-dir", str(root), "--resume", *settings)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("was complete") == 4
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.parquet")} == before
