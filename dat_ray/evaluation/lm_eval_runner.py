"""Benchmarks by lm-eval (extra `utility`): MMLU, ARC and whatever else it has a task for, or a task file of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dat_ray.config.evaluation import UtilityConfig
from dat_ray.config.models import TargetConfig
from dat_ray.engines.workers import Unfinished
from dat_ray.errors import DatError, EngineLost, ends_engine
from dat_ray.evaluation.estimates import Benchmark
from dat_ray.measures.intervals import SHARES, wilson, z_score
from dat_ray.models.adapters import load_adapter
from dat_ray.models.loading import load_causal_lm, load_tokenizer
from dat_ray.models.served import served_model

# By task and metric.
Figures = dict[str, dict[str, Benchmark]]


class Benchmarked:
    """One model in torch, as lm-eval runs it.

    Args:
        config: how the target is described; its backend is not read.
        threads: of torch on a CPU.
        adapter: LoRA adapter folder, or None.
    """

    def __init__(self, config: TargetConfig, threads: int, adapter: str | None) -> None:
        import torch
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
        self._calls = 0
        model.register_forward_pre_hook(self._count)
        # lm-eval says nothing while it is at work, and cannot be cut: it runs beside the thread that answers.
        self._thread = ThreadPoolExecutor(1, "lm-eval")
        self._begun: dict[str, Future[Figures]] = {}

    def _count(self, *_: object) -> None:
        self._calls += 1

    def run_for(self, seconds: float, task: str, config: UtilityConfig, confidence: float, seed: int) -> Figures | None:
        """A task's figures, as `run`, or None where it isn't done after `seconds` and the model was asked meanwhile.

        A task that asks the model nothing is waited for: whoever called has a deadline.
        """
        if task not in self._begun:
            self._begun[task] = self._thread.submit(self.run, task, config, confidence, seed)
        work, calls = self._begun[task], self._calls
        while True:
            try:
                found = work.result(timeout=seconds)
            except TimeoutError:
                if work.done():
                    raise
                if self._calls > calls:
                    return None
            else:
                del self._begun[task]
                return found

    def run(self, task: str, config: UtilityConfig, confidence: float, seed: int) -> Figures:
        """Task -> metric -> value with its interval; a group of tasks gives those of its members too.

        Raises:
            DatError: lm-eval cannot run the task, as where its data cannot be had.
        """
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        try:
            found = simple_evaluate(
                model=self._make(config.batch_size),
                tasks=[task],
                task_manager=TaskManager(include_path=config.include_path),
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
            # Other people's code and data: what it says is the user's to read.
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DatError(f"lm-eval failed on {task}: {problem}") from error
        return {name: task_figures(values, _questions(found, name), confidence) for name, values in found["results"].items()}


def _questions(found: Mapping[str, Any], task: str) -> int | None:
    counts = found.get("n-samples", {}).get(task)
    return None if counts is None else counts["effective"]


def task_figures(values: Mapping[str, Any], questions: int | None, confidence: float) -> dict[str, Benchmark]:
    """One task's metrics out of lm-eval's keys `METRIC,FILTER` and `METRIC_stderr,FILTER`.

    A share of right answers takes Wilson's interval, anything else a normal one from its standard error.
    """
    figures: dict[str, Benchmark] = {}
    for key, value in values.items():
        metric, comma, which = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}_stderr,{which}")
        error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
        low = high = None
        if questions and metric in SHARES:
            interval = wilson(round(value * questions), questions, confidence)
            low, high = interval.low, interval.high
        elif error is not None:
            reach = z_score(confidence) * error
            low, high = value - reach, value + reach
        name = metric if which == "none" else f"{metric},{which}"
        figures[name] = Benchmark(value=value, low=low, high=high, stderr=error, n=questions)
    return figures


def run_task(
    engine: Benchmarked, task: str, config: UtilityConfig, confidence: float, seed: int, seconds: float
) -> Figures | Unfinished:
    """`Benchmarked.run_for`, for a pool of workers."""
    found = engine.run_for(seconds, task, config, confidence, seed)
    return Unfinished((task, config, confidence, seed, seconds)) if found is None else found
