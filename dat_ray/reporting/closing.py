"""What stands on the screen at the end of a run: the finding, and a small table of attacks and the price."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.text import Text

from dat_ray.data.rundir import RunDir
from dat_ray.data.shards import has_manifest
from dat_ray.evaluation.questions import INPAINTED_OVER_REFUSAL, OVER_REFUSAL
from dat_ray.evaluation.results import load_metrics
from dat_ray.printable import printable
from dat_ray.reporting.findings import findings
from dat_ray.reporting.gap_values import GAP_KEY
from dat_ray.reporting.tables import comparison
from dat_ray.reporting.terminal import TerminalTable, for_terminal

SUITE = "default"


def closing(run: RunDir, suite: str = SUITE) -> Iterator[TerminalTable | Text]:
    """The finding of a run's own evaluation, and its rates before and after; nothing where it has not been evaluated.

    Args:
        run: its directory.
        suite: name of the evaluation.
    """
    folder = run.evaluation(suite)
    if not has_manifest(folder):
        return
    metrics = load_metrics(folder)
    table = comparison(metrics)
    shown = {*metrics.attacks, "boa", OVER_REFUSAL, INPAINTED_OVER_REFUSAL}
    wanted = [one for one in table.measures if one.key in shown or one.key.startswith(GAP_KEY)]
    measured = tuple(one for one in wanted if any(cell.value is not None for cell in one.cells))
    yield Text(printable(findings(metrics).headline))
    yield from for_terminal(replace(table, measures=measured))
