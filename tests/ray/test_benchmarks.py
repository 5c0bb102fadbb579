"""Benchmarks by lm-eval in a worker of a cluster, whose process ends in the middle; and the plan with simulated engines."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from ray import cloudpickle

from dat_ray.bench.scale_run import Load, run_load, time_resume
from dat_ray.bench.simulated import StatedTime
from dat_ray.bench.utilization import read_logs
from dat_ray.config.models import TargetConfig
from dat_ray.evaluation import benchmarks
from dat_ray.evaluation.compared import Model
from tests.ray.tiny_evaluation import tiny_recipe
from tests.ray.tiny_training import save_tiny_chat_model

# Worker processes cannot import a module of the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTIONS, CHOICES = 12, 2
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: [" yes", " no"]
metric_list: [{{metric: acc}}]
"""


def mortal(notes: Path, config: TargetConfig, threads: int, adapter: str | None) -> Any:
    """`Benchmarked` of which the first process ends when it is asked for the third time."""
    import lm_eval.tasks
    from lm_eval.models.huggingface import HFLM

    from dat_ray.evaluation import lm_eval_runner
    from dat_ray.evaluation.lm_eval_answers import StoredAnswers

    # Without its own 14,000 files, which take seconds to read.
    lm_eval.tasks.TaskManager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    # A file after each call: what is lost does not depend on the machine.
    patch.object(lm_eval_runner, "StoredAnswers", lambda folder, asked, lot, _: StoredAnswers(folder, asked, lot, 0.0)).start()
    first, answer = not list(notes.iterdir()), HFLM.loglikelihood
    calls = []

    def loglikelihood(self: Any, requests: list[Any], **options: Any) -> Any:
        calls.append(requests)
        if first and len(calls) == 3:
            os._exit(1)
        found = answer(self, requests, **options)
        with open(notes / str(os.getpid()), "a") as stream:
            stream.writelines(json.dumps(request.args) + "\n" for request in requests)
        return found

    HFLM.loglikelihood = loglikelihood
    return lm_eval_runner.Benchmarked(config, threads, adapter)


@pytest.mark.drill
@pytest.mark.fault
def test_another_process_goes_on_with_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, tasks = tmp_path / "notes", tmp_path / "tasks"
    notes.mkdir()
    tasks.mkdir()
    data = tasks / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"Is it {i}?"}) + "\n" for i in range(QUESTIONS)))
    (tasks / "local.yaml").write_text(TASK.format(name="local_cluster", data=data))
    (tasks / "group.yaml").write_text("group: local_group\ntask: [local_cluster]\naggregate_metric_list: [{metric: acc}]\n")
    save_tiny_chat_model(tmp_path / "model")
    recipe = tiny_recipe(
        target={"model": str(tmp_path / "model"), "backend": "torch", "dtype": "float32", "max_model_len": 64},
        evaluation={"utility": {"tasks": ["local_group"], "include_path": str(tasks), "batch_size": 1}},
    )
    monkeypatch.setattr(benchmarks, "_benchmarked", partial(mortal, notes))
    monkeypatch.setattr(benchmarks, "slice_seconds", lambda timeouts: 0.05)
    found = benchmarks.utility(recipe, Model("base", None, "w"), str(tmp_path / "side_effects"))
    assert found["local_group"]["acc"] == found["local_cluster"]["acc"]
    assert found["local_group"]["acc"].n == QUESTIONS
    answered = [path.read_text().splitlines() for path in notes.iterdir()]
    assert len(answered) == 2, "the task was left unfinished once"
    assert len({line for lines in answered for line in lines}) == sum(map(len, answered)) == QUESTIONS * CHOICES


def test_the_plan_with_simulated_engines_makes_every_row_once(tmp_path: Path) -> None:
    times = {"sampler": StatedTime(0.04, 0.2, 0.1, 2), "target": StatedTime(0.01), "judge": StatedTime(0.01)}
    found = run_load(Load(2, 40, times, speed=2, batch_size=2, rows_per_shard=4), tmp_path)
    assert found["row_balance"] == {"lost": 0, "doubled": 0, "unknown": 0, "failed": 0}
    assert (found["rows"], found["sampled_again"]) == (40, 0)
    logs = read_logs(tmp_path / "notes")
    rows = {role: sum(batch.rows for log in logs if log.role == role for batch in log.batches) for role in found["actors"]}
    assert rows == {"sampler": 40, "target": 40, "judge": 40}
    samplers = [log for log in logs if log.role == "sampler"]
    # The first one to be up waits for the other.
    assert len(samplers) == 2
    assert all(batch.rows == 2 for log in samplers for batch in log.batches)
    assert found["last_row_to_manifest_s"] > 0
    assert found["driver_mib"]["peak"] >= found["driver_mib"]["before"] > 0


def test_a_resume_over_many_shards_makes_what_is_missing(tmp_path: Path) -> None:
    found = time_resume(70, 4, tmp_path)
    assert (found["shards"], found["rows"]) == (70, 284)
    assert 0 < found["first_new_row_s"] < found["manifest_s"]
    assert sum(batch.rows for log in read_logs(tmp_path / "notes") for batch in log.batches if log.role == "sampler") == 4
