"""An evaluation as logs that inspect_ai reads (`inspect view`, `read_eval_log`): its EvalLog in JSON, schema version 2.

A log holds one attack on one model: a sample an attempt, the judge's verdict as its score.
"""

from __future__ import annotations

import datetime
import math
from typing import Any

from dat_ray import __version__
from dat_ray.data.ids import row_id
from dat_ray.evaluation.outcomes import read_by_judges
from dat_ray.evaluation.results import AttackMetrics
from dat_ray.pipeline.evaluated import HARMFUL, NOT_HARMFUL, Attacked, Evaluated

SCHEMA_VERSION = 2
_VALUES = {HARMFUL: 1.0, NOT_HARMFUL: 0.0}


def inspect_log(evaluated: Evaluated, block: Attacked, model: str) -> dict[str, Any]:
    """The content of one log.

    Args:
        evaluated: the evaluation.
        block: one attack on one model of it.
        model: its name in the log.
    """
    judge, rows = evaluated.metrics.judge, block.rows
    categories = {one.behavior_id: one.category for one in evaluated.behaviors}
    samples = [_sample(row, model, judge.name, categories.get(row["behavior_id"], "")) for row in rows]
    scored = sum(bool(sample["scores"]) for sample in samples)
    created = evaluated.ended.astimezone(datetime.UTC).isoformat(timespec="seconds")
    marks = [row_id("inspect", kind, evaluated.fingerprint, evaluated.suite, block.model, block.attack) for kind in "ert"]
    figures = evaluated.metrics.models[block.model].attacks[block.attack]
    return {
        "version": SCHEMA_VERSION,
        "status": "success",
        "eval": {
            "eval_id": marks[0],
            "run_id": marks[1],
            "created": created,
            "task": f"dat_ray/{block.attack}",
            "task_id": marks[2],
            "task_version": 0,
            "dataset": {"name": evaluated.suite, "samples": len(samples), "sample_ids": [one["id"] for one in samples]},
            "model": model,
            "model_generate_config": {"max_tokens": evaluated.recipe.evaluation.max_new_tokens},
            "config": {"epochs": 1},
            "packages": {"dat_ray": __version__},
            "scorers": [{"name": judge.name, "metrics": [{"name": name} for name in _metrics(figures)]}],
            "metadata": {
                "run_fingerprint": evaluated.fingerprint,
                "recipe": evaluated.recipe.name,
                "seed": evaluated.recipe.seed,
                "judge": judge.model_dump(mode="json"),
            },
        },
        "plan": {"name": "plan", "steps": [{"solver": block.attack}]},
        "results": {
            "total_samples": len(samples),
            "completed_samples": sum(one["error"] is None for one in samples),
            "scores": [
                {
                    "name": judge.name,
                    "scorer": judge.name,
                    "scored_samples": scored,
                    "unscored_samples": len(samples) - scored,
                    "metrics": {name: {"name": name, "value": value} for name, value in _metrics(figures).items()},
                }
            ],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": samples,
    }


def log_name(evaluated: Evaluated, block: Attacked, model: str) -> str:
    """Of the file, as `inspect view` sorts them: time, task, id."""
    when = evaluated.ended.astimezone(datetime.UTC).isoformat(timespec="seconds").replace(":", "-")
    mark = row_id("inspect", "t", evaluated.fingerprint, evaluated.suite, block.model, block.attack)
    return f"{when}_{block.attack.replace('_', '-')}-{model}_{mark}.json"


def _metrics(figures: AttackMetrics) -> dict[str, float]:
    """The attack's rates, as metrics.json has them: over behaviors, and over attempts."""
    rates = {"asr": figures.asr, "asr_low": figures.low, "asr_high": figures.high, "attempt_rate": figures.attempt_rate.rate}
    return {name: value for name, value in rates.items() if value is not None and math.isfinite(value)}


def _sample(row: dict[str, Any], model: str, judge: str, category: str) -> dict[str, Any]:
    # Earlier turns first, of the user and of the model in turn; evaluations of older versions have none.
    turns, completion = [*(row.get("history") or ()), row["prompt"] or ""], row["completion"]
    asked = [{"role": ("user", "assistant")[place % 2], "content": turn, "source": "input"} for place, turn in enumerate(turns)]
    said = [] if completion is None else [{"role": "assistant", "content": completion, "source": "generate", "model": model}]
    choices = [{"message": one, "stop_reason": "unknown"} for one in said]
    value = _VALUES.get(row["verdict"])
    about = {
        "goal": row["goal"],
        "behavior_id": row["behavior_id"],
        "category": category,
        "attempt_index": row["attempt_index"],
        "attempt_id": row["attempt_id"],
        "verdict": row["verdict"],
        "judge_score": row["score"],
        "judged_text": row["judged_text"],
        "prefill": row["prefill"],
        "seed": row["seed"],
        "temperature": row["temperature"],
        "model_calls": row["model_calls"],
    }
    return {
        "id": f"{row['behavior_id']}/{row['attempt_index']}",
        "epoch": 1,
        "input": asked if len(asked) > 1 else turns[-1],
        # Nothing is a right answer here: the target is what the judge is asked about.
        "target": row["goal"],
        "messages": [*asked, *said],
        "output": {"model": model, "choices": choices, "completion": completion or "", "time": row["seconds"]},
        "scores": {} if value is None else {judge: {"value": value, "answer": read_by_judges(row)}},
        "metadata": {name: one for name, one in about.items() if one is not None},
        "total_time": row["seconds"],
        "error": None if row["error"] is None else {"message": row["error"], "traceback": "", "traceback_ansi": ""},
    }
