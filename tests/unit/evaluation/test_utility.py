"""lm-eval's figures with intervals, and a local task on a tiny model where lm-eval is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.config.models import TargetConfig
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import DatError, InputError
from dat_ray.evaluation.benchmarks import require_lm_eval
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.lm_eval_runner import Benchmarked, run_task, task_figures
from dat_ray.measures.intervals import wilson
from tests.unit.models.tiny import make_model, make_tokenizer

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: local_arithmetic
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""


def test_shares_take_wilsons_interval_and_other_figures_a_normal_one() -> None:
    values = {"alias": "x", "acc,none": 0.75, "acc_stderr,none": 0.2, "word_perplexity,none": 20.0}
    values |= {"word_perplexity_stderr,none": "N/A", "f1,strict": 0.4, "f1_stderr,strict": 0.1}
    found = task_figures(values, 8, 0.95)
    expected = wilson(6, 8)
    assert found["acc"] == Benchmark(value=0.75, low=expected.low, high=expected.high, stderr=0.2, n=8)
    assert found["word_perplexity"].low is None
    assert found["f1,strict"].high == pytest.approx(0.4 + 1.95996 * 0.1, abs=1e-4)
    assert set(found) == {"acc", "word_perplexity", "f1,strict"}


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install() -> None:
    with pytest.raises(InputError, match="utility"):
        require_lm_eval()


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (extra `utility`)")
def test_a_local_task_runs_offline(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"How are {i}", "choices": [" you", " zq"], "answer": 0} for i in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(TASK.format(data=data))
    tokenizer = make_tokenizer()
    folder = tmp_path / "model"
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    engine = Benchmarked(TargetConfig(model=str(folder), dtype="float32", max_model_len=64), 1, None)
    config = UtilityConfig(tasks=("local_arithmetic",), include_path=str(tmp_path), limit=5)
    found = engine.run("local_arithmetic", config, 0.95, seed=0)
    figures = found["local_arithmetic"]["acc"]
    assert figures.n == 5
    assert 0 <= figures.low <= figures.value <= figures.high <= 1
    with pytest.raises(DatError, match="lm-eval failed on no_such_task"):
        engine.run("no_such_task", UtilityConfig(tasks=("no_such_task",)), 0.95, seed=0)


class Scripted:
    """In lm-eval's place: asks the model a question when told to, and then goes on until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ask, self.asked, self.go_on = threading.Event(), threading.Event(), threading.Event()
        self.tasks: list[list[str]] = []
        package, models, huggingface, tasks = (
            ModuleType(name) for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks")
        )
        vars(package)["simple_evaluate"] = self.simple_evaluate
        vars(huggingface)["HFLM"] = lambda pretrained, **_: pretrained
        vars(tasks)["TaskManager"] = lambda include_path: None
        for module in (package, models, huggingface, tasks):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def simple_evaluate(self, model: Any, tasks: list[str], **_: Any) -> dict[str, Any]:
        self.tasks.append(tasks)
        assert self.ask.wait(60)
        model(torch.tensor([[1, 2]]))
        self.asked.set()
        assert self.go_on.wait(60)
        if tasks == ["broken"]:
            raise ValueError("no such\nsplit")
        return {"results": {tasks[0]: {"acc,none": 0.5}}, "n-samples": {tasks[0]: {"effective": 4}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("benchmarked") / "model"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return str(root)


def test_a_long_task_reports_as_often_as_it_asks_the_model(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch)
    engine = Benchmarked(TargetConfig(model=folder, dtype="float32", max_model_len=64), 1, None)
    config = UtilityConfig(tasks=("long", "broken"))
    threading.Timer(0.05, scripted.ask.set).start()
    first = run_task(engine, "long", config, 0.95, 0, 0.01)
    assert scripted.asked.wait(60)
    assert first == Unfinished(("long", config, 0.95, 0, 0.01)), "nothing is said before the model was asked, and then at once"
    scripted.go_on.set()
    found = run_task(engine, *first.payload)
    assert not isinstance(found, Unfinished)
    assert found["long"]["acc"].n == 4
    assert scripted.tasks == [["long"]], "the task went on where it was"
    with pytest.raises(DatError, match="lm-eval failed on broken: ValueError: no such split"):
        while isinstance(run_task(engine, "broken", config, 0.95, 0, 0.01), Unfinished):
            pass
