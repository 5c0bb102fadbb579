"""A comparison of models for a terminal, however many models and however narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from dat_ray.printable import printable
from dat_ray.reporting.gap_values import GAP_KEY
from dat_ray.reporting.tables import Comparison, grid, note, shown
from dat_ray.reporting.words import model_name

# What a column has around its text, and the border at its right.
_AROUND = 3
# Characters below which the first column is not narrowed.
_FEWEST = 10


@dataclass(frozen=True)
class TerminalTable:
    """A table that is divided where the terminal is too narrow for its columns, each part with the first column.

    Args:
        title: above the first part, or None.
        header: names of the columns.
        rows: their cells.
        groups: how many columns stand together, one number after another for all columns but the first.
        caption: below the last part, or None.
    """

    title: str | None
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[int]
    caption: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        parts = self.parts(options.max_width)
        for index, columns in enumerate(parts):
            yield self._table(
                columns,
                options.max_width,
                title=self.title if index == 0 else None,
                caption=self.caption if index == len(parts) - 1 else None,
            )

    def parts(self, width: int) -> list[list[int]]:
        """Numbers of the columns of each part: as many groups as fit, and one at least."""
        room = width - 1 - self._first(width) - _AROUND
        parts, left = [[0]], room
        for group in self._groups():
            needed = self._needed(group)
            if needed > left and len(parts[-1]) > 1:
                parts.append([0])
                left = room
            parts[-1] += group
            left -= needed
        return parts

    def _groups(self) -> list[list[int]]:
        ends = [1 + end for end in accumulate(self.groups)]
        return [list(range(end - size, end)) for size, end in zip(self.groups, ends, strict=True)]

    def _needed(self, group: Sequence[int]) -> int:
        return sum(self._width(column) + _AROUND for column in group)

    def _width(self, column: int) -> int:
        """Characters that a column needs: its cells stay in one line each, its name may break between words."""
        words = self.header[column].split() or [""]
        return max(map(cell_len, [*words, *(row[column] for row in self.rows)]))

    def _first(self, width: int) -> int:
        """Characters of the first column, whose cells may break.

        As many as it needs where the table stays whole; of a divided one a quarter of the terminal, or less for a wide group.
        """
        longest = max(map(cell_len, [self.header[0], *(row[0] for row in self.rows)]))
        needs = [self._needed(group) for group in self._groups()]
        room = width - 1 - _AROUND
        if min(longest, width // 2) + sum(needs) <= room:
            return min(longest, room - sum(needs))
        return min(longest, max(_FEWEST, min(width // 4, room - max(needs, default=0))))

    def _table(self, columns: Sequence[int], width: int, title: str | None, caption: str | None) -> Table:
        found = Table(
            # As text: what a name says in [brackets] is not for the terminal to obey.
            title=None if title is None else Text(title),
            title_justify="left",
            caption=None if caption is None else Text(caption),
            caption_justify="left",
        )
        for column in columns:
            least = self._first(width) if column == 0 else min(self._width(column), max(1, width // 2))
            found.add_column(Text(self.header[column]), justify="left" if column == 0 else "right", min_width=least)
        for row in self.rows:
            found.add_row(*(Text(row[column]) for column in columns))
        return found


def for_terminal(table: Comparison, title: str | None = None) -> list[TerminalTable]:
    """The measures with their differences, and the distribution gap apart, whose differences are on the page."""
    gap = [one for one in table.measures if one.key.startswith(GAP_KEY)]
    others = replace(table, measures=tuple(one for one in table.measures if one not in gap))
    header, rows = grid(others)
    groups = [1 if index == 0 else 2 for index in range(len(table.models))]
    named = None if title is None else printable(title)
    tables = [TerminalTable(named, header, rows, groups, note(others))]
    if gap:
        header = [printable(one) for one in ("Responses after", *map(model_name, table.models))]
        rows = [[printable(one.name), *(printable(shown(cell, one.unit)[0]) for cell in one.cells)] for one in gap]
        tables.append(TerminalTable("Log p of harmful responses, nats per token", header, rows, [1] * len(table.models)))
    return tables
