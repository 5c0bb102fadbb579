"""BEAST (arXiv 2402.15570): the goal with a suffix from the model's own distribution; `search/beast.py` finds it."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import MakeSearch
from dat_ray.evaluation.attacks.searching import SuffixAttack
from dat_ray.evaluation.attacks.transfer import Transfer


class BeastAttack(SuffixAttack):
    """Settings: `evaluation.beast`."""

    name = "beast"
    title = "BEAST"
    description = "a suffix found by beam search without gradients; needs the model's weights"

    @property
    def attempts(self) -> int:
        return self.config.beast.attempts

    def method(self) -> MakeSearch:
        from dat_ray.evaluation.search.beast import BeastSearch

        return BeastSearch


class BeastTransfer(Transfer):
    """Suffixes found on the first model, asked of every model."""

    name = "beast_transfer"
    title = "BEAST, transferred"
    description = "the prompts that beast found on the first model"
    source = BeastAttack
