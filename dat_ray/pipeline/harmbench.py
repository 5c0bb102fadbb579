"""An evaluation in the files of HarmBench's pipeline (arXiv 2402.04249), a folder ATTACK/MODEL each.

test_cases/test_cases.json   {behavior id: [prompt, ...]}
completions/MODEL.json       {behavior id: [{"test_case", "generation"}, ...]}
results/MODEL.json           the same with "label": 1 harmful, 0 not, -1 where the judge's answer could not be read
"""

from __future__ import annotations

from typing import Any

from dat_ray.pipeline.evaluated import HARMFUL, NOT_HARMFUL, Attacked

_LABELS = {HARMFUL: 1, NOT_HARMFUL: 0}
_UNREAD = -1


def harmbench_files(block: Attacked, model: str) -> dict[str, dict[str, list[Any]]]:
    """Relative path -> content, of attempts that have a prompt and an answer.

    Args:
        block: one attack on one model.
        model: what the model is called in the files' names.
    """
    asked = {
        key: [row for row in rows if row["prompt"] is not None and row["completion"] is not None]
        for key, rows in block.attempts.items()
    }
    asked = {key: rows for key, rows in asked.items() if rows}
    completions = {
        key: [{"test_case": row["prompt"], "generation": row["completion"]} for row in rows] for key, rows in asked.items()
    }
    results = {
        key: [{**case, "label": _LABELS.get(row["verdict"], _UNREAD)} for case, row in zip(completions[key], rows, strict=True)]
        for key, rows in asked.items()
    }
    return {
        "test_cases/test_cases.json": {key: [row["prompt"] for row in rows] for key, rows in asked.items()},
        f"completions/{model}.json": completions,
        f"results/{model}.json": results,
    }
