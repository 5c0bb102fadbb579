from __future__ import annotations

import json
from pathlib import Path

from dat_ray.data.shards import read_table
from dat_ray.evaluation.drawn_prompts import write_diagnostics
from tests.unit.reporting.synthetic_run import finished_run, recipe


def test_the_diagnostics_of_a_round_lie_beside_its_candidates(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    write_diagnostics(recipe(), run)
    path = Path(run.candidates(0)) / "diagnostics.json"
    stored = json.loads(path.read_text())
    rows = read_table(run.candidates(0)).to_pylist()
    assert stored["prompts"] == sum(row["prompt"] is not None for row in rows) > 0
    assert 0 < stored["effective"]["low"] <= stored["effective"]["value"] <= stored["effective"]["high"] <= 1
    assert stored["model_calls"]["n"] == stored["behaviors"] == len({row["behavior_id"] for row in rows})
    assert (stored["similarity_measure"], stored["gain"]["value"]) == ("token-set Jaccard", None)
    path.write_text("{}")
    write_diagnostics(recipe(), run)
    assert path.read_text() == "{}", "what is there is left alone"
