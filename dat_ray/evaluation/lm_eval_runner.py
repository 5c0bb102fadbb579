"""Benchmarks by lm-eval (extra `utility`): MMLU, ARC and whatever else it has a task for, or a task file of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.config.models import TargetConfig
from dat_ray.data.ids import row_id, seed_from_id
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import DatError, EngineLost, ends_engine, error_line
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.evaluation.lm_eval_answers import Request, StoredAnswers
from dat_ray.evaluation.lm_eval_tasks import task_manager
from dat_ray.models.adapters import load_adapter
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.served import served_model

# By task and metric.
Figures = dict[str, dict[str, Benchmark]]
# What lm-eval asks of a model: a method each.
KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
# lm-eval sorts the requests of a call by length and fills batches with them: of few, the last is rarely full.
BATCHES_PER_CALL = 8


@dataclass(frozen=True)
class BenchmarkSettings:
    """How one model's benchmarks are run.

    Attributes:
        utility: the recipe's section.
        confidence: of the intervals.
        seed: the recipe's.
        weights: change with the model's.
        answers: folder of its answers, local or a URI.
        seconds: after which a task says that it gets on, and writes what the model has answered.
    """

    utility: UtilityConfig
    confidence: float
    seed: int
    weights: str
    answers: str
    seconds: float


class Benchmarked:
    """One model in torch, as lm-eval runs it.

    Args:
        config: how the target is described; its backend is not read.
        threads: of torch on a CPU.
        adapter: LoRA adapter folder, or None.
    """

    def __init__(self, config: TargetConfig, threads: int, adapter: str | None) -> None:
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(threads)
        self.name = config.model
        folder = served_model(config.model, "target.model", config.revision)
        base: Any = load_causal_lm(folder, config.dtype, "target.model")
        model = (base if adapter is None else load_adapter(base, adapter)).eval()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._make = lambda batch_size: HFLM(
            pretrained=model.to(device),
            tokenizer=load_tokenizer(folder, "target.model"),
            batch_size=batch_size,
            max_length=config.max_model_len,
        )
        self._config = config
        self._calls = 0
        model.register_forward_pre_hook(self._count)
        # lm-eval says nothing while it is at work, and cannot be cut: it runs beside the thread that answers.
        self._thread = ThreadPoolExecutor(1, "lm-eval")
        self._begun: dict[str, Future[Figures]] = {}

    def _count(self, *_: object) -> None:
        self._calls += 1

    def run_for(self, task: str, settings: BenchmarkSettings) -> Figures | None:
        """A task's figures, as `run`, or None where it isn't done after `seconds` and the model was asked meanwhile.

        A task that asks the model nothing is waited for: whoever called has a deadline.
        """
        if task not in self._begun:
            self._begun[task] = self._thread.submit(self.run, task, settings)
        work, calls = self._begun[task], self._calls
        while True:
            try:
                found = work.result(timeout=settings.seconds)
            except TimeoutError:
                if work.done():
                    raise
                if self._calls > calls:
                    return None
            else:
                del self._begun[task]
                return found

    def run(self, task: str, settings: BenchmarkSettings) -> Figures:
        """Task -> metric -> value with its interval; a group of tasks gives those of its members too.

        lm-eval builds the requests and makes figures of the answers; what the folder has an answer to is not asked.

        Raises:
            DatError: lm-eval cannot run the task, as where its data cannot be had.
        """
        from lm_eval import simple_evaluate

        config, seed = settings.utility, settings.seed
        try:
            manager = task_manager(config.include_path)
            loaded = manager.load([task])
            group = loaded["groups"].get(task)
            found = simple_evaluate(
                model=self._answering(settings),
                tasks=list(loaded["tasks"].values()) if group is None else [group],
                task_manager=manager,
                num_fewshot=config.num_fewshot,
                limit=config.limit,
                log_samples=False,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:
            if ends_engine(error):
                raise EngineLost(f"the engine cannot go on ({type(error).__name__})") from error
            if isinstance(error, DatError):
                raise
            # Other people's code and data: what it says is the user's to read.
            raise DatError(f"lm-eval failed on {task}: {error_line(error)}") from error
        figures = {}
        for name, values in found["results"].items():
            questions = _questions(values, loaded["groups"].get(name))
            figures[name] = task_figures(values, questions, settings.confidence)
        # A group may be a mere list of its members.
        return {name: metrics for name, metrics in figures.items() if metrics}

    def _answering(self, settings: BenchmarkSettings) -> Any:
        """The model as lm-eval sees it, with answers that are stored."""
        model = self._make(settings.utility.batch_size)
        asked = row_id(settings.weights, self._config.dtype, self._config.max_model_len, settings.seed)
        lot = BATCHES_PER_CALL * settings.utility.batch_size
        answers = StoredAnswers(settings.answers, asked, lot, settings.seconds)
        for kind in KINDS:
            setattr(model, kind, partial(answers.ask, kind, _seeded(getattr(model, kind))))
        return model


def _seeded(method: Callable[..., Sequence[Any]]) -> Callable[[str, Sequence[Request]], Sequence[Any]]:
    """A call whose random numbers hang on the first request alone, for tasks that sample: a resume draws as they did."""

    def ask(first: str, requests: Sequence[Request]) -> Sequence[Any]:
        torch.manual_seed(seed_from_id(first))
        return method(requests, disable_tqdm=True)

    return ask


def _questions(values: Mapping[str, Any], group: Any | None) -> int | None:
    """Questions of which a task's or group's figures are shares; None for a group that weighs its members alike."""
    count: int = values.get("sample_len", 0)
    if group is not None:
        weighted = all(metric.weight_by_size for metric in group.aggregate_metric_list or ())
        if not weighted or set(values.get("sample_count", {}).values()) != {count}:
            return None
    return count


def task_figures(values: Mapping[str, Any], questions: int | None, confidence: float) -> dict[str, Benchmark]:
    """One task's metrics out of lm-eval's keys `METRIC,FILTER` and `METRIC_stderr,FILTER`."""
    figures: dict[str, Benchmark] = {}
    for key, value in values.items():
        metric, comma, which = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{which}")
        error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
        name = metric if which == "none" else f"{metric},{which}"
        figures[name] = Benchmark.of(name, value, error, questions, confidence)
    return figures


def run_task(engine: Benchmarked, task: str, settings: BenchmarkSettings) -> Figures | Unfinished:
    """`Benchmarked.run_for`, for a pool of workers. What was answered lies in the folder of answers: another process goes on."""
    found = engine.run_for(task, settings)
    return Unfinished((task, settings)) if found is None else found
