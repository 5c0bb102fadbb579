"""Side effects of a stored evaluation, for one that scores it again: no judge changes them, but the confidence of intervals may.

Limits are made anew from what the evaluation stored: each row's drift, each prompt's score, a benchmark's standard error and
number of questions. Where that is not there, as in folders that were replays before, limits of another confidence are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dat_ray.config.evaluation import GapConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import RowView
from dat_ray.data.shards import exists, join, read_bytes, write_bytes
from dat_ray.data.stored import stored_object, well_formed
from dat_ray.evaluation.drift import drift_figures, drift_file
from dat_ray.evaluation.estimates import Benchmark, Part
from dat_ray.evaluation.gap_metrics import distribution_gap
from dat_ray.evaluation.gap_pairs import RISKS_FOLDER
from dat_ray.evaluation.gap_results import DistributionGap
from dat_ray.evaluation.questions import SIDE_EFFECTS_FOLDER
from dat_ray.evaluation.results import METRICS, Drift, Metrics, SideEffects
from dat_ray.progress import stage_line

Measured = TypeVar("Measured", bound=Part)


@dataclass(frozen=True)
class StoredEffects:
    """What one evaluation measured of its models, with intervals as a recipe asks for them.

    Attributes:
        root: its folder.
        metrics: its figures.
        weights: digest of each model's weights.
        risks: its rows of schema RISKS.
        recipe: whose confidence is asked for.
    """

    root: str
    metrics: Metrics
    weights: Mapping[str, str]
    risks: Sequence[RowView]
    recipe: Recipe

    def by_model(self) -> dict[str, SideEffects]:
        """By the model's name; what has lost its limits is said.

        Raises:
            ShardError: a file does not hold what an evaluation writes there.
        """
        return {name: self._of(name) for name in self.weights}

    def copy_to(self, folder: str) -> None:
        """Copies each row's drift, so that another evaluation's folder stands alone too."""
        for name in self.weights:
            if exists(old := self._drift_file(self.root, name)):
                write_bytes(self._drift_file(folder, name), read_bytes(old))

    def _of(self, name: str) -> SideEffects:
        model = self.metrics.models[name]
        return SideEffects(
            None if model.kl_drift is None else self._drift(name, model.kl_drift),
            {task: self._benchmarks(name, task, found) for task, found in model.utility.items()},
            None if model.gap is None else self._gap(name, model.gap),
        )

    def _drift_file(self, root: str, name: str) -> str:
        # By the recipe, which has been checked: the figures are of a file that somebody else may have written.
        return drift_file(join(root, SIDE_EFFECTS_FOLDER), self.recipe.evaluation.kl_data, name)

    def _drift(self, name: str, found: Drift) -> Drift:
        path = self._drift_file(self.root, name)
        if exists(path):
            stored = stored_object(path, finite=False)
            with well_formed(path):
                if stored["weights"] == self.weights[name]:
                    return drift_figures(stored["found"], self.recipe)
        return self._as_it_was(found, f"{name}: drift")

    def _benchmarks(self, name: str, task: str, found: Mapping[str, Benchmark]) -> dict[str, Benchmark]:
        figures = {}
        for metric, one in found.items():
            with well_formed(join(self.root, METRICS)):
                again = Benchmark.of(metric, one.value, one.stderr, one.n, self.recipe.evaluation.confidence)
            known = again.low is not None or one.low is None
            figures[metric] = again if known else self._as_it_was(one, f"{name}: {task}, {metric}")
        return figures

    def _gap(self, name: str, found: DistributionGap) -> DistributionGap:
        rows = [row for row in self.risks if row["model"] == name]
        if rows:
            with well_formed(join(self.root, RISKS_FOLDER)):
                bound = GapConfig(bound=found.bound)
                return distribution_gap(rows, bound, found.attack_steps, self.recipe.evaluation.confidence)
        return self._as_it_was(found, f"{name}: distribution gap")

    def _as_it_was(self, found: Measured, what: str) -> Measured:
        """Figures of whose values nothing is stored: their limits are of one confidence."""
        wanted = self.recipe.evaluation.confidence
        if wanted == self.metrics.confidence:
            return found
        stage_line(f"{what}: its values are not stored: no interval at a confidence of {wanted:g}")
        return type(found).model_validate(_without_limits(found.model_dump()))


def _without_limits(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: None if key in ("low", "high") else _without_limits(value) for key, value in tree.items()}
    return tree
