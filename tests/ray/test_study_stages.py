"""A study with its real stages on tiny models: killed and resumed it is one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dat_ray.data.shards import has_manifest, read_table
from tests.golden.tiny import make_models
from tests.ray.test_rounds import rounds_recipe
from tests.ray.worker_processes import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.drill]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made, before = tmp_path_factory.mktemp("study"), Path.cwd()
    make_models(made)
    os.chdir(made)
    yield made
    os.chdir(before)


def the_file(folder: Path) -> Path:
    tree = rounds_recipe(folder, 1).model_dump(mode="json")
    tree["cluster"]["local_cpus"] = 8
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    study = {
        "name": "tiny",
        "recipe": str(folder / "recipe.yaml"),
        "seeds": [1, 2],
        "reference": "dat",
        "primary": "boa",
        "arms": {"cat": {"settings": {"selection": {"source": "goals"}}}, "dat": {"about": "in-painted prompts"}},
        # After 4 of 6 updates, and after the last.
        "fronts": {"every": 4, "attacks": ["direct"], "over_refusal": 0.5},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def start(path: Path, root: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    log = open(root.parent / f"{root.name}.log", "ab")
    command = [sys.executable, "-m", "dat_ray.cli", "study", str(path), "--study-dir", str(root), *options]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def finished(path: Path, root: Path, *options: str) -> None:
    process = start(path, root, *options)
    assert process.wait(PATIENCE) == 0, (root.parent / f"{root.name}.log").read_text()[-3000:]


def killed(path: Path, root: Path, when: Callable[[], bool]) -> None:
    process = start(path, root, "--resume")
    while not when():
        assert process.poll() is None, (root.parent / f"{root.name}.log").read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def attempts(root: Path, suite: str) -> list[dict[str, Any]]:
    [evaluation] = (root / "suites" / suite).glob(f"*/evaluation/{suite}")
    rows = read_table(str(evaluation)).sort_by("attempt_id").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_study_that_is_killed_in_each_of_its_parts_ends_as_one_that_is_not(folder: Path, tmp_path: Path) -> None:
    path = the_file(folder)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    finished(path, whole)
    shared = list((whole / "shared").iterdir())
    # The retain rows of these models have responses: nothing is asked of the base model for them, and once for all.
    assert sorted(one.name.split("-")[0] for one in shared) == ["candidates", "candidates", "fresh", "retain"]
    points = (
        lambda: any((torn / "shared").glob("candidates-*/candidates/round-0/_input/_manifest.json")),
        lambda: has_manifest(str(torn / "arms/cat/seed-1/training/round-0")),
        lambda: has_manifest(str(torn / "arms/dat/seed-1/training_set/round-0")),
        lambda: any((torn / "suites/heldout").glob("*/evaluation/heldout/part-*.parquet")),
        lambda: any((torn / "suites/heldout").glob("*/evaluation/heldout/risks/part-*.parquet")),
        lambda: any((torn / "suites/fronts").glob("*/evaluation/fronts/part-*.parquet")),
    )
    for point in points:
        killed(path, torn, point)
    finished(path, torn, "--resume")
    for suite in ("heldout", "fronts"):
        assert attempts(torn, suite) == attempts(whole, suite)
        for name in ("table.csv", "table.md", "table.tex"):
            assert (torn / "tables" / suite / name).read_bytes() == (whole / "tables" / suite / name).read_bytes()
    models = {str(row["model"]) for row in attempts(whole, "fronts")}
    assert models == {"base"} | {f"{arm}@{seed}u{updates}" for arm in ("cat", "dat") for seed in (1, 2) for updates in (4, 6)}
    assert (torn / "index.html").read_text() == (whole / "index.html").read_text()
    record = json.loads((whole / "study.json").read_text())
    assert sorted(record["runs"]) == ["cat@1", "cat@2", "dat@1", "dat@2"]
