from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from dat_ray.config.loading import fingerprint
from dat_ray.config.sweep import read_sweep
from dat_ray.data.rundir import open_run
from dat_ray.data.schemas import BEHAVIORS
from dat_ray.data.shards import join, read_table, write_bytes, write_file
from dat_ray.errors import InputError, ShardError
from dat_ray.models.identity import check_weights
from dat_ray.pipeline.shared import take_over
from dat_ray.pipeline.sweep import SUITE
from dat_ray.reporting.collect import stage_costs
from tests.unit.models.test_identity import model_folder
from tests.unit.reporting.synthetic_run import finished_run


def test_a_point_takes_over_what_is_shared_and_tells_its_cost_once(tmp_path: Path) -> None:
    source = finished_run(tmp_path / "shared")
    point = read_sweep("demo", [], ["training.updates=3"]).points[0]
    run = open_run(str(tmp_path / "point"), point.recipe, resume=False)
    for _ in range(2):
        take_over([source], run, point.recipe, SUITE)
    # Readable under the point's own fingerprint, with the same bytes.
    candidates = read_table(run.candidates(0), fingerprint=fingerprint(point.recipe))
    assert candidates.equals(read_table(source.candidates(0)))
    with pytest.raises(ShardError):
        read_table(source.candidates(0), fingerprint=fingerprint(point.recipe))
    own = Path(run.evaluation("default"))
    assert [path.name for path in own.iterdir()] == ["part-00000.parquet"]
    lines = [json.loads(line) for line in Path(join(run.logs, "stages.jsonl")).read_text().splitlines()]
    costs = stage_costs(lines, point.recipe)
    assert [cost.stage for cost in costs][:2] == ["generate (shared)", "select (shared)"]
    assert costs[0].seconds == 301.0


def test_a_point_does_not_go_on_with_other_weights_than_those_that_gave_what_it_takes_over(tmp_path: Path) -> None:
    source = finished_run(tmp_path / "shared")
    point = read_sweep("demo", [], ["training.updates=3"]).points[0]
    run = open_run(str(tmp_path / "point"), point.recipe, resume=False)
    model = model_folder(tmp_path / "model")
    for folder in (source.root, source.evaluation("default")):
        check_weights(folder, {"target.model": model})
    take_over([source], run, point.recipe, SUITE)
    for folder in (run.root, run.evaluation("default")):
        check_weights(folder, {"target.model": model})
    model_folder(tmp_path / "model", 2.0)
    for folder in (run.root, run.evaluation("default")):
        with pytest.raises(InputError, match="has other weights"):
            check_weights(folder, {"target.model": model})


def test_what_a_point_has_made_itself_is_left_alone(tmp_path: Path) -> None:
    source = finished_run(tmp_path / "shared")
    point = read_sweep("demo", [], ["training.updates=3"]).points[0]
    run = open_run(str(tmp_path / "point"), point.recipe, resume=False)
    write_file(run.behaviors, pa.Table.from_pylist([], schema=BEHAVIORS))
    shard = join(run.evaluation("default"), "part-00000.parquet")
    write_bytes(shard, b"mine")
    take_over([source], run, point.recipe, SUITE)
    assert Path(shard).read_bytes() == b"mine"
    assert Path(run.behaviors).read_bytes() != Path(source.behaviors).read_bytes()
