"""Which retain rows are kept: answers, not refusals; what the rules of refusal cannot read is kept and counted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from dat_ray.config.loading import load_recipe
from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import read_table
from dat_ray.pipeline.stages import _fit_to_retain
from dat_ray.training.retain_set import RetainReport, prepare_retain, retain_folder
from tests.plain_demo import PLAIN

ROWS = [
    {"prompt": "Name a bird", "response": "A robin is a small bird."},
    {"prompt": "Name a lock", "response": "I'm sorry, but I can't help with that."},
    {"prompt": "说出一种鸟", "response": "知更鸟是一种小鸟。"},
    {"prompt": "Name a tree", "response": "..."},
]


def test_responses_that_no_rule_reads_are_kept_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "retain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = load_recipe("demo", [*PLAIN, f"training.retain.path={path}", "training.retain.limit=4"])
    run = RunDir(str(tmp_path / "run"))
    report = prepare_retain(recipe, run, lambda prompts: [], partial(_fit_to_retain, recipe))
    assert report == RetainReport(rows=2, written=0, dropped=2, skipped=False, unread=1)
    assert read_table(retain_folder(run, 0))["prompt"].to_pylist() == ["Name a bird", "说出一种鸟"]
