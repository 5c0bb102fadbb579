"""One suite on one run directory: its attacks, its models, how much there is to do, and where the rows go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from dat_ray.config.schema import Recipe
from dat_ray.data.error_limit import ErrorLimit
from dat_ray.data.rundir import RunDir
from dat_ray.data.schemas import ATTEMPTS, CANDIDATES, HARMLESS_HELD_OUT, LOOK_ALIKES, REWRITES, RISKS, SEARCHES
from dat_ray.data.shards import join
from dat_ray.evaluation.attacks.base import Attack, Setup
from dat_ray.evaluation.attacks.inpainting import HarmlessInpainting
from dat_ray.evaluation.attacks.prompts import Prompts
from dat_ray.evaluation.compared import Model
from dat_ray.evaluation.gap_pairs import RISK_ROWS, RISKS_FOLDER, ScoredPair, in_order, written_pairs
from dat_ray.evaluation.questions import SEARCHES_FOLDER, UNREADABLE, SeedScope, behaviors_of, held_out, look_alikes
from dat_ray.evaluation.registry import check_attacks, chosen_attacks
from dat_ray.evaluation.store import ShardStore, error_rate
from dat_ray.evaluation.target_likelihood import LIKELIHOODS


class Suite:
    """What is known before anything is asked.

    Args:
        recipe: resolved.
        run: where behaviors, and what the suite leaves, lie.
        name: of the suite.
        models: whom to attack.
        behaviors: rows of schema BEHAVIORS.
        weights: by field, of `check_weights`.
        drawn: drawn pairs whose distribution gap is measured, by model; None where it is not.

    Attributes:
        attacks: in the recipe's order.
        look_alikes: questions whose refusal is over-refusal.
        harmless: draws and asks harmless prompts in the sampler's style; None where the run has no requests for it.
        prompts: stores of what samplers draw, by attack.
        pairs: by model, all pairs whose distribution gap is measured.
        likelihoods, rewrites, searches, risks, answered, attempts: stores of the other rows.
        total: rows to make, for the progress bar.

    Raises:
        InputError: an attack that does not exist, or that lacks something.
        DatError: no held-out behaviors, or some that are also trained on.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDir,
        name: str,
        models: Sequence[Model],
        behaviors: pa.Table,
        weights: Mapping[str, str | None],
        drawn: Mapping[str, Sequence[ScoredPair]] | None = None,
    ) -> None:
        self.recipe, self.run_dir, self.name, self.models = recipe, run, name, models
        check_attacks(recipe)
        self.behaviors = held_out(behaviors)
        scope = SeedScope(name, recipe.seed)
        setup = Setup(recipe, scope, self.behaviors, weights)
        self.attacks: list[Attack] = [kind(setup) for kind in chosen_attacks(recipe.evaluation).values()]
        self.look_alikes = look_alikes(behaviors_of(behaviors, LOOK_ALIKES))
        requests = behaviors_of(behaviors, HARMLESS_HELD_OUT)
        self.harmless = HarmlessInpainting(Setup(recipe, scope, requests, weights)) if requests else None
        written = self._written_pairs(behaviors) if drawn else []
        self.pairs = {name: in_order([*pairs, *written]) for name, pairs in (drawn or {}).items()}
        self._open_stores()

    @property
    def folder(self) -> str:
        """Of the suite, below the run directory."""
        return self.run_dir.evaluation(self.name)

    @property
    def drawing(self) -> list[Attack]:
        """The attacks, and what draws and asks as they do."""
        return self.attacks if self.harmless is None else [*self.attacks, self.harmless]

    @property
    def attacker_works_beside_targets(self) -> bool:
        """Whether an attack lets the attacker write while a model is asked."""
        return any(attack.planned().written_each for attack in self.attacks)

    def _written_pairs(self, behaviors: pa.Table) -> list[ScoredPair]:
        peoples = [attack for attack in self.attacks if isinstance(attack, Prompts) and attack.file.in_gap]
        questions = [one for attack in peoples for one in attack.known_questions]
        return written_pairs(questions, self.behaviors, behaviors, self.recipe)

    def _open_stores(self) -> None:
        root, models = self.folder, len(self.models)
        planned = {attack: attack.planned() for attack in self.drawing}
        plans = planned.values()
        asked = models * (len(self.look_alikes) + sum(plan.asked for plan in plans))
        written = sum(plan.written for plan in plans) + models * sum(plan.written_each for plan in plans)
        searched = models * sum(plan.searched for plan in plans)
        targets = models * sum(len(behavior.targets) for behavior in self.behaviors)
        rate, setting = error_rate(self.recipe)
        shard_rows = self.recipe.evaluation.rows_per_shard or self.recipe.generation.rows_per_block

        def store(folder: str, schema: pa.Schema, id_column: str, total: int, rows: int = shard_rows) -> ShardStore:
            return ShardStore(join(root, folder), schema, id_column, ErrorLimit(total, rate, setting), rows)

        def attempts(folder: str) -> ShardStore:
            return ShardStore(folder, ATTEMPTS, "attempt_id", limit, shard_rows, excused=UNREADABLE)

        self.prompts = {
            attack.name: store(attack.prompts_folder, CANDIDATES, "candidate_id", planned[attack].drawn)
            for attack in self.drawing
            if attack.prompts_folder is not None
        }
        self.likelihoods = store(LIKELIHOODS, CANDIDATES, "candidate_id", targets)
        self.rewrites = store("rewrites", REWRITES, "rewrite_id", written)
        # A search takes long: each is stored as soon as it is done.
        self.searches = store(SEARCHES_FOLDER, SEARCHES, "search_id", searched, rows=1)
        scored = sum(len(pairs) for pairs in self.pairs.values())
        self.risks = store(RISKS_FOLDER, RISKS, "risk_id", scored, rows=RISK_ROWS)
        # A prompt that was never drawn fails once for each model, and is already counted against the sampler's own limit.
        limit = ErrorLimit(asked, min(1.0, 2 * rate), setting)
        self.answered, self.attempts = attempts(join(root, "answered")), attempts(root)
        self.total = asked + written + searched + targets + scored + sum(plan.drawn for plan in plans)

    def publish(self, fingerprint: str) -> None:
        """Writes the manifests, the attempts' own last."""
        # The translation of a finished attempt's answer is not looked at again.
        self.rewrites.load_rest()
        for store in (*self.prompts.values(), self.likelihoods, self.rewrites, self.searches, self.risks):
            if store.rows():
                store.publish(fingerprint)
        self.attempts.publish(fingerprint)
