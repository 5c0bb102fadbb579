"""Candidates that survived, summed by hand."""

from __future__ import annotations

from dat_ray.measures.searches import survival


def row(model: str, attack: str | None, drawn: list[int] | None, survived: list[int] | None) -> dict[str, object]:
    return {"model": model, "attack": attack, "drawn": drawn, "survived": survived}


def test_candidates_are_counted_by_model_and_attack() -> None:
    rows = [
        row("base", "gcg", [8, 32, 8], [5, 0, 8]),
        row("base", "gcg", [32, 8, 8], [0, 1, 1]),
        row("base", "pgd", [1, 1], [1, 0]),
        row("tuned", "gcg", [8], [8]),
        row("tuned", "embedding", None, None),
        row("tuned", None, None, None),
    ]
    assert survival(rows) == {
        "base": {
            "gcg": {"searches": 2, "steps": 6, "steps_without": 2, "drawn": 96, "survived": 15},
            "pgd": {"searches": 1, "steps": 2, "steps_without": 1, "drawn": 2, "survived": 1},
        },
        "tuned": {"gcg": {"searches": 1, "steps": 1, "steps_without": 0, "drawn": 8, "survived": 8}},
    }


def test_rows_of_before_candidates_were_counted_are_left_out() -> None:
    assert survival([{"model": "base", "prompts": ["x"]}]) == {}
