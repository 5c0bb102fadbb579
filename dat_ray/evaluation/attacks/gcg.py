"""GCG (arXiv 2307.15043): the goal with a suffix that makes the target response likely; `search/gcg.py` finds it."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import MakeSearch
from dat_ray.evaluation.attacks.searching import SuffixAttack
from dat_ray.evaluation.attacks.transfer import Transfer


class GcgAttack(SuffixAttack):
    """Settings: `evaluation.gcg`."""

    name = "gcg"
    title = "GCG"
    description = "a suffix found by gradients; needs the model's weights"

    @property
    def attempts(self) -> int:
        return self.config.gcg.attempts

    def method(self) -> MakeSearch:
        from dat_ray.evaluation.search.gcg import GcgSearch

        return GcgSearch


class GcgTransfer(Transfer):
    """Suffixes found on the first model, asked of every model."""

    name = "gcg_transfer"
    title = "GCG, transferred"
    description = "the prompts that gcg found on the first model"
    source = GcgAttack
