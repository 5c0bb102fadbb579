from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import ray

from dat_ray import telemetry

REPOSITORY = Path(__file__).parents[2]


def names_in_dashboard() -> set[str]:
    dashboard = json.loads((REPOSITORY / "cluster/grafana/dat_ray.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert all("$session" in expression for expression in expressions)
    return set(re.findall(r"\bray_dat_\w+", " ".join(expressions)))


def test_the_dashboard_draws_every_metric_by_its_exported_name_and_no_other() -> None:
    exported = {f"ray_{name}_total" for name in telemetry.COUNTERS} | {f"ray_{name}" for name in telemetry.GAUGES}
    assert names_in_dashboard() == exported


def test_every_metric_is_counted_somewhere_in_the_package() -> None:
    source = "".join(path.read_text() for path in (REPOSITORY / "dat_ray").rglob("*.py"))
    for name in telemetry.COUNTERS | telemetry.GAUGES:
        # Its definition is one mention; a call is another.
        assert source.count(f'"{name}"') >= 2, name


def test_labels_in_the_dashboard_are_labels_of_the_metric() -> None:
    dashboard = json.loads((REPOSITORY / "cluster/grafana/dat_ray.json").read_text())
    tables = telemetry.COUNTERS | telemetry.GAUGES
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            name = re.search(r"ray_(dat_\w+?)(_total)?\{", target["expr"])
            assert name
            by = {word.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in group.split(",")}
            assert by <= set(tables[name[1]][1])
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= by


def test_outside_a_session_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_made", {})
    # Tests that need a session share one, which may be up.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    telemetry.count("dat_rows", 3, stage="generate", role="judge")
    telemetry.gauge("dat_learning_rate", 0.1)
    assert telemetry._made == {}
    with pytest.raises(KeyError):
        telemetry.count("dat_row", 1)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, float, dict[str, str]]] = []

    def count(self, name: str, value: float, **labels: str) -> None:
        self.calls.append((name, value, labels))


def test_an_update_tells_its_terms_and_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(telemetry, "gauge", recorder.count)
    monkeypatch.setattr(telemetry, "count", recorder.count)
    telemetry.training_update({"update": 3, "loss": 1.5, "seconds": 2.0, "learning_rate": 0.1, "attack_ce": [1.0, 2.0]})
    assert recorder.calls == [
        ("dat_updates", 1, {}),
        ("dat_loss_term", 1.5, {"term": "loss"}),
        ("dat_update_seconds", 2.0, {}),
        ("dat_learning_rate", 0.1, {}),
    ]


def test_verdicts_are_counted_by_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(telemetry, "count", recorder.count)
    telemetry.verdicts("generate", "refusal-rules", ["harmful", "unparsed", "harmful"])
    assert recorder.calls == [
        ("dat_verdicts", 2, {"stage": "generate", "judge": "refusal-rules", "verdict": "harmful"}),
        ("dat_verdicts", 1, {"stage": "generate", "judge": "refusal-rules", "verdict": "unparsed"}),
    ]
