"""Evaluates two tiny models with every attack, and compares what comes out with what was recorded.

    python -m tests.golden.record             # names the first difference, or says that there is none
    python -m tests.golden.record --update    # records anew what comes out now

A change of the evaluation that should change nothing leaves the record as it is; one that should is seen in its diff. What a
machine may round differently is compared up to that; ids, seeds, texts (by their hash) and verdicts are compared to the letter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("record.json")
SUITE = "golden"
# Two ways of cutting the same work: the record is made with the first.
PIECES = ({"batch_size": 8, "rows_per_block": 64}, {"batch_size": 3, "rows_per_block": 5})
# Folder below the suite's -> column of its rows' ids.
TABLES = {
    "rewrites": "rewrite_id",
    "searches": "search_id",
    "prompts": "candidate_id",
    "prompts_heldout": "candidate_id",
    "target_logprob": "candidate_id",
}
TEXTS = frozenset({"goal", "prompt", "prompts", "completion", "judged_text", "request", "text", "target", "token_ids"})
TIMES = frozenset({"seconds"})
# Of a float32 forward pass and its gradients on other processors, with a wide margin.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


def evaluate_tiny(pieces: dict[str, int]) -> dict[str, Any]:
    """Runs the suite in a folder of its own and returns its record."""
    from dat_ray.data.behaviors import load_behaviors
    from dat_ray.data.rundir import open_run
    from dat_ray.data.shards import write_file
    from dat_ray.evaluation.compared import named_models
    from dat_ray.evaluation.stage import evaluate
    from tests.golden.in_process import in_process
    from tests.golden.tiny import ADAPTER, make_models, make_recipe, script

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        # Ids hash the names of models, which are relative so that they say nothing of this machine.
        os.chdir(folder)
        try:
            make_models(Path(folder))
            recipe = make_recipe(Path(folder), pieces)
            run = open_run("run", recipe, resume=False)
            write_file(run.behaviors, load_behaviors(recipe.behaviors).table)
            with in_process(script):
                evaluate(recipe, run, SUITE, models=named_models(recipe, f"base=base,tuned={ADAPTER}"))
            return _record(Path(folder) / run.evaluation(SUITE))
        finally:
            os.chdir(before)


def _record(root: Path) -> dict[str, Any]:
    from dat_ray.data.shards import read_table

    def rows(folder: Path) -> list[dict[str, Any]]:
        return read_table(str(folder)).to_pylist()

    attempts = {
        " ".join(str(row[name]) for name in ("model", "attack", "behavior_id", "attempt_index")): _row(row) for row in rows(root)
    }
    tables = {folder: {row[column]: _row(row) for row in rows(root / folder)} for folder, column in TABLES.items()}
    return {
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()),
        # Causes before consequences, since the first difference is the one that is named.
        **{folder: dict(sorted(table.items())) for folder, table in tables.items()},
        "attempts": dict(sorted(attempts.items())),
        "metrics": _timeless(json.loads((root / "metrics.json").read_text(encoding="utf-8"))),
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row holds, empty columns and times left out, with a hash in place of each text."""
    kept = {name: value for name, value in row.items() if value is not None and name not in TIMES}
    return {name: _hash(value) if name in TEXTS else _rounded(value) for name, value in kept.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _rounded(value: Any) -> Any:
    """Floats with 6 digits, which is more than is compared."""
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _timeless(value) for name, value in tree.items() if name not in TIMES}
    return [_timeless(value) for value in tree] if isinstance(tree, list) else _rounded(tree)


def first_difference(recorded: Any, now: Any, path: str = "") -> str | None:
    """Where two records part, as `path: recorded ..., now ...`; None where they agree."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for name in [*recorded, *(name for name in now if name not in recorded)]:
            inner = f"{path} / {name}" if path else str(name)
            if name not in now or name not in recorded:
                return f"{inner}: {'no longer there' if name in recorded else 'not recorded'}"
            if found := first_difference(recorded[name], now[name], inner):
                return found
        return None
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        pairs = enumerate(zip(recorded, now, strict=True))
        return next((found for i, (a, b) in pairs if (found := first_difference(a, b, f"{path}[{i}]"))), None)
    if isinstance(recorded, float) and isinstance(now, int | float) and not isinstance(now, bool):
        same = math.isclose(recorded, now, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        same = type(recorded) is type(now) and recorded == now
    return None if same else f"{path}: recorded {recorded!r}, now {now!r}"


def write(record: Mapping[str, Any], path: Path = RECORD) -> None:
    """Writes a record, a row in a line."""
    parts = []
    for name, part in record.items():
        if name in ("files", "metrics"):
            text = json.dumps(part, indent=1)
        else:
            text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in part.items()) + "\n}"
        parts.append(f"{json.dumps(name)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="record what comes out now")
    if parser.parse_args().update:
        write(evaluate_tiny(PIECES[0]))
        return 0
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    for pieces in PIECES:
        now = evaluate_tiny(pieces)
        if pieces is not PIECES[0]:
            # The shards are other ones, their rows are not.
            now["files"] = recorded["files"]
        if difference := first_difference(recorded, now):
            print(f"{pieces}: {difference}")
            return 1
    print(f"as recorded: {len(recorded['attempts'])} attempts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
