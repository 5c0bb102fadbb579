"""What `dat evaluate` does besides evaluating: lists attacks and judges, and measures a judge on human labels."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence

from dat_ray.config.models import JudgeConfig
from dat_ray.data.shards import write_bytes
from dat_ray.engines.factory import JUDGES, build_judge
from dat_ray.evaluation.calibration import calibrate, read_labeled, table
from dat_ray.evaluation.registry import builtin_attacks
from dat_ray.evaluation.results import part_json
from dat_ray.preflight import check_writable


def list_parts(as_json: bool) -> None:
    """Prints attacks and judges, each with what it needs."""
    attacks = {name: (kind.description, ", ".join(kind.needs) or None) for name, kind in builtin_attacks().items()}
    parts = {"attacks": attacks, "judges": JUDGES}
    if as_json:
        tree = {
            kind: [{"name": name, "description": text, "needs": needs} for name, (text, needs) in found.items()]
            for kind, found in parts.items()
        }
        print(json.dumps(tree, indent=1))
        return
    for kind, found in parts.items():
        print(f"{kind}:")
        for name, (text, needs) in found.items():
            print(f"  {name:30} {text}{f'; needs {needs}' if needs else ''}")


def measure_judge(config: JudgeConfig, paths: Sequence[str], out: str | None, as_json: bool) -> None:
    """Prints how a judge agrees with labeled answers.

    Args:
        config: of the judge.
        paths: tables of labeled answers.
        out: JSON file for the figures, or None.
        as_json: print JSON instead of a table.

    Raises:
        InputError: a table that cannot be read, or a folder that cannot be written.
        StorageError: the file cannot be written.
    """
    if out is not None:
        check_writable("--out", posixpath.dirname(out) or ".", "choose another file")
    rows = read_labeled(paths)
    found = calibrate(build_judge(config), rows)
    text = part_json(found)
    if out is not None:
        write_bytes(out, f"{text}\n".encode())
    print(text if as_json else f"{found.judge.name}\n{table(found)}")
