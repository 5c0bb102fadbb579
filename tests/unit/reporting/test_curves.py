"""Several runs' training curves on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.config.training import TrainingConfig
from dat_ray.data.rundir import RunDir, open_run
from dat_ray.errors import DatError, InputError
from dat_ray.reporting.charts import TERMS, loss_figures
from dat_ray.reporting.curves import curves
from dat_ray.training.step import term_names
from dat_ray.training.update_metrics import MetricsLog


def trained(root: Path, retain: str, updates: int = 3, attacked: bool = True) -> str:
    run: RunDir = open_run(str(root), load_recipe("demo"), resume=False)
    log = MetricsLog(run.training(0), tensorboard=False)
    log.start(0)
    for update in range(updates):
        log.append(
            {
                "update": update,
                "away": -1.0 - update,
                "toward": 2.0 - update,
                retain: 0.25 * update,
                "attack_ce": [3.0, 2.5, 1.0] if attacked else [3.0],
                "attack_norm": [0.1, 0.2] if attacked else [],
                "gradient_norm": 1.5,
            }
        )
    log.close()
    return run.root


def test_every_run_is_drawn_where_it_has_a_value(tmp_path: Path) -> None:
    one = trained(tmp_path / "one" / "<b>run", "retain_kl")
    two = trained(tmp_path / "two" / "<b>run", "retain_ce", attacked=False)
    page = Path(curves([one, two], str(tmp_path / "out"))).read_text()
    found = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert list(found) == ["<b>run", "<b>run (2)"]
    assert found["<b>run"]["retain_kl"] == [[0, 0.0], [1, 0.25], [2, 0.5]]
    assert found["<b>run"]["gained"] == [[0, 2.0], [1, 2.0], [2, 2.0]]
    assert found["<b>run"]["perturbation"][0] == [0, 0.2]
    assert "gained" not in found["<b>run (2)"]
    assert "<b>run" not in page
    assert "&lt;b&gt;run (2)" in page
    assert page.count("<figure>") == 7
    assert "Not part of &lt;b&gt;run (2)." in page
    assert "−1 → −3" in page


def test_what_has_no_curve_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        curves([str(tmp_path / "nothing")], str(tmp_path / "out"))
    begun = open_run(str(tmp_path / "begun"), load_recipe("demo"), resume=False)
    with pytest.raises(DatError, match="begun holds no training curve"):
        curves([begun.root], str(tmp_path / "out"))
    with pytest.raises(InputError, match="a page tells 8 apart"):
        curves([begun.root] * 9, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_every_retain_term_has_a_curve() -> None:
    """Under the name by which the guards of a training know it."""
    forms = get_args(TrainingConfig.model_fields["retain_loss"].annotation)
    assert len(forms) > 2
    for form in forms:
        name = term_names(load_recipe("demo", [f"training.retain_loss={form}"]).training)[2]
        assert name.startswith("retain_")
        assert name in {term.key for term in TERMS}
        [figure] = loss_figures([{"update": 0, name: 0.5}, {"update": 1, name: 0.25}])
        assert "0.50 at first, 0.25 at the end" in figure.title
