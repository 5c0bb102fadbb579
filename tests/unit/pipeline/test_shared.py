"""What an evaluation of other models takes over from those beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import write_bytes
from dat_ray.evaluation.compared import Model
from dat_ray.pipeline.shared import take_over_models
from tests.unit.reporting.synthetic_run import evaluate, new_run, recipe

# As the evaluations of `synthetic_run` have them.
MODELS = [Model(name, None, "aaaa") for name in ("base", "cat@1", "dat@1")]
BASES = {"part-00000.parquet", "part-base-direct-00000.parquet", "risks/part-base-0-training-00000.parquet"}
CATS = {"part-cat@1-direct-00000.parquet", "risks/part-cat@1-0-training-00000.parquet"}
# Of the base model, on the prompts of one run.
ON_CATS = {"risks/part-base-0-training-cat@1-00000.parquet"}
DATS = {"part-dat@1-direct-00000.parquet", "risks/part-dat@1-00000.parquet"}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ([*MODELS, Model("lat@1", None, "bbbb")], BASES | CATS | ON_CATS | DATS),
        # A run that is left out, and one that has been trained again: rows of other weights would be refused for good.
        ([MODELS[0], MODELS[2]], BASES | DATS),
        ([MODELS[0], replace(MODELS[1], weights="bbbb"), MODELS[2]], BASES | DATS),
    ],
)
def test_an_evaluation_takes_over_the_rows_of_its_models_as_they_are_now(
    tmp_path: Path, wanted: Sequence[Model], names: set[str]
) -> None:
    old = new_run(tmp_path / "models-old")
    evaluate(old, "heldout", {model.name: (0.5, 0.1, -2.0) for model in MODELS})
    for name in (BASES | CATS | ON_CATS | DATS) - {"part-00000.parquet"}:
        write_bytes(f"{old.evaluation('heldout')}/{name}", name.encode())
    run = RunDir(str(tmp_path / "models-new"))
    (tmp_path / "models-new").mkdir()
    take_over_models(run, recipe(), "heldout", wanted)
    root = Path(run.evaluation("heldout"))
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == names
