"""Benchmarks by lm-eval on tiny models: figures with intervals, groups, answers that are kept, names that do not exist."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.tasks
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.config.models import TargetConfig
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import DatError, InputError, ShardError
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.lm_eval_answers import StoredAnswers
from dat_ray.evaluation.lm_eval_runner import Benchmarked, BenchmarkSettings, run_task, task_figures
from dat_ray.evaluation.lm_eval_tasks import check_tasks, task_manager
from dat_ray.measures.intervals import wilson
from tests.unit.models.tiny import make_model, make_tokenizer

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}]
"""
SAMPLING = """
task: local_sampling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: " you"
repeats: 2
generation_kwargs: {{until: ["zq"], max_gen_toks: 4, do_sample: true, temperature: 1.0}}
metric_list: [{{metric: exact_match}}]
"""
GROUP = """
group: {name}
task: [local_many, local_few]
aggregate_metric_list: [{{metric: acc, weight_by_size: {weighted}}}]
"""
# Of each task's questions; the groups tell a mean of questions from one of tasks.
MANY, FEW = 13, 4


def test_shares_take_wilsons_interval_and_other_figures_a_normal_one() -> None:
    values = {"alias": "x", "acc,none": 0.75, "acc_stderr,none": 0.2, "word_perplexity,none": 20.0}
    values |= {"word_perplexity_stderr,none": "N/A", "f1,strict": 0.4, "f1_stderr,strict": 0.1}
    found = task_figures(values, 8, 0.95)
    expected = wilson(6, 8)
    assert found["acc"] == Benchmark(value=0.75, low=expected.low, high=expected.high, stderr=0.2, n=8)
    assert found["word_perplexity"].low is None
    assert found["f1,strict"].high == pytest.approx(0.4 + 1.95996 * 0.1, abs=1e-4)
    assert set(found) == {"acc", "word_perplexity", "f1,strict"}


@pytest.fixture(scope="module", autouse=True)
def own_tasks_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reading lm-eval's own 14,000 task files takes seconds: all tests but one go without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.tasks, "TaskManager", partial(TaskManager, include_defaults=False))
        # The fixture's files are no part of the user's cache.
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        task_manager.cache_clear()
        yield
    task_manager.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two tasks of multiple choice, three groups of them, and a task that samples."""
    root = tmp_path_factory.mktemp("benchmarked")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    words = [" you", " zq", " are", " how"]
    for name, count in (("local_many", MANY), ("local_few", FEW)):
        data = root / f"{name}.jsonl"
        rows = [
            {"question": f"How are {i} {name}", "choices": words[i % 2 : i % 2 + 3], "answer": (i * i + count) % 3}
            for i in range(count)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    (root / "sampling.yaml").write_text(SAMPLING.format(data=root / "local_many.jsonl"))
    for name, weighted in (("by_question", "true"), ("by_task", "false")):
        (root / f"{name}.yaml").write_text(GROUP.format(name=name, weighted=weighted))
    (root / "list.yaml").write_text("group: mere_list\ntask: [local_few]\n")
    return root


def engine_of(folder: Path) -> Benchmarked:
    return Benchmarked(TargetConfig(model=str(folder / "model"), dtype="float32", max_model_len=64), 1, None)


def settings_of(folder: Path, answers: Path, **changed: Any) -> BenchmarkSettings:
    config = UtilityConfig(tasks=("by_question",), include_path=str(folder), batch_size=1, **changed)
    return BenchmarkSettings(config, 0.95, seed=0, weights="w", answers=str(answers), seconds=0.0)


def plain(folder: Path, task: str) -> dict[str, Any]:
    """What lm-eval says when it is left alone."""
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "dtype": "float32", "max_length": 64},
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        bootstrap_iters=1000,
    )
    return found["results"]


@pytest.mark.parametrize("task", ["by_question", "by_task", "local_few"])
def test_figures_are_those_of_lm_eval_alone(task: str, folder: Path, tmp_path: Path) -> None:
    found, expected = engine_of(folder).run(task, settings_of(folder, tmp_path)), plain(folder, task)
    assert set(found) == set(expected)
    for name, metrics in found.items():
        assert metrics["acc"].value == pytest.approx(expected[name]["acc,none"], abs=1e-12)
        assert metrics["acc"].stderr == pytest.approx(expected[name]["acc_stderr,none"], abs=1e-12)


@pytest.mark.slow
def test_a_group_has_figures_and_its_members_too(folder: Path, tmp_path: Path) -> None:
    engine, settings = engine_of(folder), settings_of(folder, tmp_path)
    by_question = engine.run("by_question", settings)
    many, few, group = (by_question[name]["acc"] for name in ("local_many", "local_few", "by_question"))
    right = round(many.value * MANY) + round(few.value * FEW)
    assert 0 < right < MANY + FEW
    assert many.value != few.value, "the two means are told apart"
    assert group.value == pytest.approx(right / (MANY + FEW))
    expected = wilson(right, MANY + FEW)
    assert (group.n, group.low, group.high) == (MANY + FEW, expected.low, expected.high)
    # A mean of tasks is no share of the questions.
    by_task = engine.run("by_task", settings)["by_task"]["acc"]
    assert by_task.value == pytest.approx((many.value + few.value) / 2)
    assert by_task.n is None
    assert by_task.stderr is not None
    assert by_task.high == pytest.approx(by_task.value + 1.959964 * by_task.stderr)
    assert set(engine.run("mere_list", settings)) == {"local_few"}
    assert engine.run("local_few", settings_of(folder, tmp_path, limit=3))["local_few"]["acc"].n == 3


class Killed(BaseException):
    pass


def recorded(monkeypatch: pytest.MonkeyPatch, method: str, dies_at: int | None) -> list[list[str]]:
    """Notes what the model is asked, a list a call, and dies where it is told to."""
    calls: list[list[str]] = []
    real: Callable[..., Any] = getattr(HFLM, method)

    def ask(self: HFLM, requests: list[Any], **options: Any) -> Any:
        if len(calls) == dies_at:
            raise Killed
        calls.append([repr(request.args) for request in requests])
        return real(self, requests, **options)

    monkeypatch.setattr(HFLM, method, ask)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(("task", "method"), [("by_question", "loglikelihood"), ("local_sampling", "generate_until")])
def test_what_was_answered_before_a_kill_is_not_asked_again(
    task: str, method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        whole = recorded(patch, method, None)
        undisturbed = engine_of(folder).run(task, settings_of(folder, tmp_path / "undisturbed"))
    assert len(whole) > 3
    with monkeypatch.context() as patch:
        before = recorded(patch, method, 2)
        with pytest.raises(Killed):
            engine_of(folder).run(task, settings_of(folder, tmp_path / "killed"))
    with monkeypatch.context() as patch:
        after = recorded(patch, method, None)
        assert engine_of(folder).run(task, settings_of(folder, tmp_path / "killed")) == undisturbed
    assert before + after == whole
    stored = [{path.name: path.read_bytes() for path in (tmp_path / run).iterdir()} for run in ("undisturbed", "killed")]
    assert stored[0] == stored[1], "a task that samples draws as it would have"
    with monkeypatch.context() as patch:
        again = recorded(patch, method, None)
        other = settings_of(folder, tmp_path / "killed")
        engine_of(folder).run(task, BenchmarkSettings(other.utility, 0.95, 0, "other weights", other.answers, 0.0))
    assert again == whole, "answers of other weights are others"


class Question:
    def __init__(self, *args: Any) -> None:
        self.args = args


def test_stored_answers_keep_their_place_and_kind(tmp_path: Path) -> None:
    asked: list[Any] = []

    def model(first: str, requests: Any) -> list[Any]:
        asked.extend(request.args for request in requests)
        return [(-float(len(asked)) / 3, True) if len(request.args) == 2 else -0.1 for request in requests]

    requests = [Question("a", "b"), Question("a", "c"), Question("a", "b")]
    first = StoredAnswers(str(tmp_path / "answers"), "w", 2, 0.0).ask("loglikelihood", model, requests)
    assert asked == [("a", "b"), ("a", "c"), ("a", "b")], "equal requests are drawn apart"
    again = StoredAnswers(str(tmp_path / "answers"), "w", 3, 0.0)
    assert again.ask("loglikelihood", model, requests[::-1]) == [first[0], first[1], first[2]]
    assert again.ask("loglikelihood_rolling", model, [Question("a")]) == [-0.1]
    assert len(asked) == 4
    one = next((tmp_path / "answers").glob("*.json"))
    for damage in ("{", '{"answers": {"x": [1]}}', '{"answers": {"x": null}}', "{}"):
        one.write_text(damage)
        with pytest.raises(ShardError, match=one.name):
            StoredAnswers(str(tmp_path / "answers"), "w", 2, 0.0)


def test_a_long_task_reports_as_often_as_it_asks_the_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, asked, go_on = threading.Event(), threading.Event(), threading.Event()
    runs = []

    def simple_evaluate(model: HFLM, tasks: list[Any], **_: Any) -> dict[str, Any]:
        runs.append(tasks)
        assert ask.wait(60)
        model.model(torch.tensor([[1, 2]]))
        asked.set()
        assert go_on.wait(60)
        if tasks[0].task_name == "local_few":
            raise ValueError("no such\nsplit")
        return {"results": {"local_many": {"acc,none": 0.5, "sample_len": 4}}}

    monkeypatch.setattr(lm_eval, "simple_evaluate", simple_evaluate)
    engine, settings = engine_of(folder), settings_of(folder, tmp_path)
    settings = BenchmarkSettings(settings.utility, 0.95, 0, "w", settings.answers, 0.01)
    threading.Timer(0.05, ask.set).start()
    first = run_task(engine, "local_many", settings)
    assert asked.wait(60)
    assert first == Unfinished(("local_many", settings)), "nothing is said before the model was asked, and then at once"
    go_on.set()
    while isinstance(found := run_task(engine, "local_many", settings), Unfinished):
        pass
    assert found["local_many"]["acc"].n == 4
    assert len(runs) == 1, "the task went on where it was"
    with pytest.raises(DatError, match="lm-eval failed on local_few: ValueError: no such split"):
        while isinstance(run_task(engine, "local_few", settings), Unfinished):
            pass


def test_names_are_looked_up_before_anything_starts(folder: Path) -> None:
    check_tasks(UtilityConfig(tasks=("by_question", "local_few"), include_path=str(folder)))
    check_tasks(UtilityConfig())
    with pytest.raises(InputError, match=r"utility\.tasks = 'local_fwe': lm-eval has no such task: .*such as local_few"):
        check_tasks(UtilityConfig(tasks=("local_many", "local_fwe"), include_path=str(folder)))
    # A path would bring in code that a recipe from elsewhere names.
    with pytest.raises(InputError, match="no such task"):
        check_tasks(UtilityConfig(tasks=(str(folder / "local_few.yaml"),)))
    with pytest.raises(InputError, match=r"utility\.include_path = .*there is no such folder"):
        check_tasks(UtilityConfig(tasks=("local_few",), include_path=str(folder / "none")))


@pytest.mark.parametrize("package", ["lm_eval", "datasets", "sacrebleu"])
def test_without_lm_eval_or_what_it_needs_one_line_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("lm_eval", package):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    task_manager.cache_clear()
    said = r"utility\.tasks = 'lm-eval': needs lm-eval .*pip install 'dat-ray\[utility\]'"
    with pytest.raises(InputError, match=said) as caught:
        check_tasks(UtilityConfig(tasks=("mmlu",)))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.drill
def test_mmlu_and_arc_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks, on made-up rows of the published columns: what a connected machine does but for the download."""
    fetched = []

    def load_dataset(path: str, name: str, **_: Any) -> datasets.DatasetDict:
        fetched.append((path, name))
        row: dict[str, Any] = {"question": f"How are you, {name}?"}
        if path == "cais/mmlu":
            row |= {"choices": ["you", "zq", "are", "how"], "answer": len(name) % 4}
        else:
            row |= {"choices": {"text": ["you", "zq", "are"], "label": ["A", "B", "C"]}, "answerKey": "B"}
        rows = datasets.Dataset.from_list([row] * 2)
        return datasets.DatasetDict(dict.fromkeys(("train", "dev", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", TaskManager)
    task_manager.cache_clear()
    names = ("mmlu", "arc_easy", "arc_challenge")
    check_tasks(UtilityConfig(tasks=names))
    engine = engine_of(folder)
    settings = BenchmarkSettings(UtilityConfig(tasks=names, batch_size=64), 0.95, 0, "w", str(tmp_path / "answers"), 60.0)
    found = {task: figures for name in names for task, figures in engine.run(name, settings).items()}
    assert found["mmlu"]["acc"].n == 2 * 57
    parts = ("mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities")
    assert sum(found[part]["acc"].n or 0 for part in parts) == 2 * 57
    leaves = [task for task in found if task.startswith("mmlu_") and task not in parts]
    assert len(leaves) == 57
    assert found["mmlu"]["acc"].value == pytest.approx(sum(found[task]["acc"].value for task in leaves) / 57)
    assert {"acc", "acc_norm"} <= set(found["arc_easy"]) & set(found["arc_challenge"])
    assert {("allenai/ai2_arc", "ARC-Easy"), ("allenai/ai2_arc", "ARC-Challenge")} < set(fetched)
    task_manager.cache_clear()
