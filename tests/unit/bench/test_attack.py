"""The attack's benchmark: equal perturbations, then at least twice the speed of the published form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dat_ray.bench import attack as bench
from dat_ray.config.training import AttackConfig, TrainingConfig
from dat_ray.training.attack import mean_embedding_norm
from dat_ray.training.batches import collate
from dat_ray.training.terms import find_perturbation

SMALL = replace(bench.PRESETS["cpu"], width=32, hidden=48, vocabulary=200, rows=4, tokens=24, response=6, dtype=torch.float64)


@pytest.mark.parametrize("radius", [None, 0.2])
def test_the_published_form_finds_the_same_perturbation(radius: float | None) -> None:
    network, rows = bench.build(SMALL, torch.device("cpu"))
    unit = mean_embedding_norm(network.embedding)
    attack = AttackConfig(steps=4, step_size=0.05, step_rule="sign", unit="relative", radius=radius, positions="prompt")
    ours = find_perturbation(network, rows, TrainingConfig(retain_rows=0, retain_weight=0.0, attack=attack), unit).delta[0]
    published = bench.published_attack(network, rows, attack, unit)
    assert torch.allclose(ours, published, atol=1e-5)
    assert published.norm(dim=-1).max().item() > 0.05 * unit


def test_the_rows_begin_as_those_under_a_chat_template_do() -> None:
    """A real run's rows share what stands before the user message, and `Network` treats it apart."""
    _, rows = bench.build(SMALL, torch.device("cpu"))
    batch = collate([row.harmful for row in rows], share_prefix=True)
    assert batch.shared == bench.TEMPLATE_TOKENS
    assert not torch.equal(batch.ids[0, batch.shared :], batch.ids[1, batch.shared :])


def test_forms_that_disagree_report_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PRESETS, "small", replace(SMALL, dtype=torch.float32))
    plain = bench.published_attack
    monkeypatch.setattr(bench, "published_attack", lambda *arguments: -plain(*arguments))
    with pytest.raises(bench.DatError, match=r"differ in \d+\.\d% of their coordinates"):
        bench.bench_attack("small", 1)


def check_figures(found: dict[str, Any]) -> None:
    assert found["ratio_to_literal"] == pytest.approx(found["rows_per_s"] / found["literal_rows_per_s"])
    assert found["mfu"] is None, "a CPU's peak is not known"
    assert found["share_different"] < 0.01


def test_figures_fit_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PRESETS, "small", replace(SMALL, dtype=torch.float32))
    check_figures(bench.bench_attack("small", 1))


@pytest.mark.drill
def test_the_attack_is_at_least_twice_as_fast_as_the_published_form(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(bench.PRESETS, "cpu", replace(bench.PRESETS["cpu"], steps=2))
    found = bench.bench_attack("cpu", 1)
    check_figures(found)
    assert found["ratio_to_literal"] >= 2.0
