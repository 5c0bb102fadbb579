"""Tables on terminals of many widths: nothing of them is lost."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dat_ray.reporting.tables import Cell, Comparison, Measure
from dat_ray.reporting.terminal import TerminalTable, for_terminal

MODELS = ("base", "goals", "cat", "mixat", "diffusion_only", "dat", "dat_random", "dat_rounds")


def many_arms() -> Comparison:
    def cell(number: int) -> Cell:
        value = number / 100
        first = number % len(MODELS) == 0
        moved = (None, None, None) if first else (-value, -value - 0.1, -value + 0.1)
        return Cell(value, value / 2, value + 0.2, *moved)

    count = len(MODELS)
    rates = [
        Measure(f"attack{row}", name, "rate", tuple(cell(row * count + column) for column in range(count)))
        for row, name in enumerate(
            ("Direct request", "Any attack", "Written prompts, rewrites: share of the prompts that break it")
        )
    ]
    gap = Measure("gap/whole/attacked", "Written minus training prompts, under attack", "nats", rates[0].cells)
    return Comparison(MODELS, (*rates, gap), 0.95, "Judged by refusal-rules, a rule-based proxy.", "behaviors")


def printed(tables: list[TerminalTable], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in tables:
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [50, 80, 100, 132, 250, 1000])
def test_every_value_of_every_model_stands_whole_in_one_line(width: int) -> None:
    tables = for_terminal(many_arms(), "Suite heldout")
    text = printed(tables, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for table in tables:
        for row in table.rows:
            for cell in row[1:]:
                assert re.search(rf"(?<![\d−+]){re.escape(cell)}(?=\s)", text), cell
    for model in MODELS:
        assert model in text
    # Each part names its rows.
    parts = sum(len(table.parts(width)) for table in tables)
    assert text.count("Measure") + text.count("Responses after") == parts
    assert text.count("Suite heldout") == 1
    assert re.sub(r"\s+", " ", text).count("Judged by refusal-rules, a rule-based proxy.") == 1


def test_a_table_that_fits_is_in_one_part_and_one_that_does_not_keeps_models_whole() -> None:
    rates, gap = for_terminal(many_arms())
    assert rates.parts(1000) == [list(range(16))]
    assert gap.parts(1000) == [list(range(9))]
    narrow = rates.parts(80)
    assert len(narrow) > 1
    assert [column for part in narrow for column in part[1:]] == list(range(1, 16))
    # A model's value and its difference: columns 2 and 3, 4 and 5, and so on.
    assert all(part[1] % 2 == 0 for part in narrow[1:])
    assert all(part[0] == 0 for part in narrow)
    # Of a terminal that holds nothing, one model a part.
    assert [len(part) for part in rates.parts(10)] == [2] + [3] * 7


def test_names_are_text_and_no_markup() -> None:
    table = Comparison(
        ("base", "[red]odd[/red]"), (Measure("boa", "Any [b]attack", "rate", (Cell(0.5, 0.4, 0.6),) * 2),), 0.95, "x"
    )
    text = printed(for_terminal(table, "[i]T"), 120)
    assert "[red]odd[/red]" in text
    assert "Any [b]attack" in text
    assert "[i]T" in text
