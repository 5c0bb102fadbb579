"""PGD with discretization (arXiv 2402.09154): the goal with a suffix from relaxed tokens; `search/pgd.py` finds it."""

from __future__ import annotations

from dat_ray.evaluation.attacks.base import MakeSearch
from dat_ray.evaluation.attacks.searching import SuffixAttack
from dat_ray.evaluation.attacks.transfer import Transfer


class PgdAttack(SuffixAttack):
    """Settings: `evaluation.pgd`."""

    name = "pgd"
    title = "PGD"
    description = "a suffix found by gradients on mixtures of tokens; needs the model's weights"

    @property
    def attempts(self) -> int:
        return self.config.pgd.attempts

    def method(self) -> MakeSearch:
        from dat_ray.evaluation.search.pgd import PgdSearch

        return PgdSearch


class PgdTransfer(Transfer):
    """Suffixes found on the first model, asked of every model."""

    name = "pgd_transfer"
    title = "PGD, transferred"
    description = "the prompts that pgd found on the first model"
    source = PgdAttack
