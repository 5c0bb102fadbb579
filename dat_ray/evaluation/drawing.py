"""Draws prompts with diffusion samplers, beside the first model under attack where the cluster has room for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from dat_ray.config.cluster import Pool
from dat_ray.config.models import SamplerConfig
from dat_ray.config.schema import Recipe
from dat_ray.data.row_types import Row
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.calls import Failure, InfillCall, SimilarityCall, infill, similarity
from dat_ray.engines.pool_size import fits
from dat_ray.engines.roles import Engines
from dat_ray.engines.workers import Workers
from dat_ray.evaluation.attacks.base import Attack
from dat_ray.evaluation.judges import judge_pools
from dat_ray.evaluation.store import Chunk, ShardStore
from dat_ray.progress import ProgressCounter


@dataclass(frozen=True)
class StoredDrawing:
    """Prompts that are stored, or will be.

    Attributes:
        store: of rows of schema CANDIDATES.
        work: ends when all of them are drawn; None where they were there.
    """

    store: ShardStore
    work: Future[None] | None

    def rows(self) -> list[Row]:
        """Waits for the prompts."""
        if self.work is not None:
            self.work.result()
        return self.store.rows()


class Samplers:
    """Draws for one attack after the other: the `Drawer` of `dat_ray.evaluation.attacks.base`.

    Args:
        recipe: resolved.
        engines: how each role's engine is made.
        stores: by the name of the attack.
        counter: of the rows that are done.
    """

    def __init__(self, recipe: Recipe, engines: Engines, stores: Mapping[str, ShardStore], counter: ProgressCounter) -> None:
        self._recipe, self._engines, self._stores, self._counter = recipe, engines, stores, counter
        # One thread: two samplers follow each other.
        self._thread = ThreadPoolExecutor(1, "sampler")
        self._started = ExitStack()
        self._comparing: Workers | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within it samplers may draw; where a target fails, its sampler is killed before its thread is waited for."""
        with self._thread, self._started:
            try:
                yield
            finally:
                self._thread.shutdown(wait=False, cancel_futures=True)

    def draw(self, attack: Attack, config: SamplerConfig, requests: Sequence[Row]) -> StoredDrawing:
        """See `Drawer.draw`."""
        store = self._stores[attack.name]
        ids = [row["candidate_id"] for row in requests]
        todo = store.load_done(store.cut("prompts", ids, requests))
        self._counter.add(len(requests) - sum(len(chunk.items) for chunk in todo), "prompts")
        if not todo:
            return StoredDrawing(store, None)
        work = self._thread.submit(self._draw, config, todo, store)
        if not fits(*self._pools()):
            work.result()
        return StoredDrawing(store, work)

    def _pools(self) -> list[Pool]:
        """Those that work at the same time as the first model under attack, and its own."""
        cluster = self._recipe.cluster
        compared = self._recipe.evaluation.min_goal_similarity is not None
        judges = judge_pools(self._recipe).values()
        return [cluster.sampler, *([cluster.encoder] if compared else []), cluster.target, *judges]

    def _draw(self, config: SamplerConfig, todo: Sequence[Chunk[Row]], store: ShardStore) -> None:
        pool = self._recipe.cluster.sampler
        build = partial(self._engines.sampler, config, pool.threads)
        encoder = self._encoder()
        # Its memory is free again before the next model is loaded.
        with self._started.enter_context(Workers("sampler", build, pool, self._recipe.timeouts)) as sampler:
            calls = [InfillCall([_request(row) for row in chunk.items], config.batch_size) for chunk in todo]
            for index, results in sampler.map(infill, [(call,) for call in calls]):
                chunk = todo[index]
                rows = []
                for row, result in zip(chunk.items, results, strict=True):
                    if isinstance(result, Failure):
                        rows.append(row | {"error": f"sampler: {result.error}"})
                    else:
                        assert result.row_id == row["candidate_id"], "the sampler answers in the order it was asked"
                        drawn = {"prompt": result.prompt, "nfe": result.nfe, "sample_logprob": result.logprob}
                        rows.append(row | drawn | {"error": None})
                if encoder is not None:
                    self._compare(rows, encoder)
                store.put(chunk, rows)
                self._counter.add(len(rows), "prompts")

    def _encoder(self) -> Workers | None:
        """Tells how near prompts are to their goals, where the recipe has a floor for that; one for all samplers."""
        config, pool = self._recipe.encoder, self._recipe.cluster.encoder
        if self._recipe.evaluation.min_goal_similarity is None:
            return None
        assert config is not None, "the recipe has been checked"
        if self._comparing is None:
            build = partial(self._engines.encoder, config, pool.threads)
            self._comparing = self._started.enter_context(Workers("encoder", build, pool, self._recipe.timeouts))
        return self._comparing

    def _compare(self, rows: Sequence[Row], encoder: Workers) -> None:
        """Adds `goal_similarity` to rows that have a prompt; one that cannot be compared has failed."""
        config = self._recipe.encoder
        assert config is not None, "the recipe has been checked"
        drawn = [row for row in rows if row["error"] is None and row["prompt"].strip()]
        call = SimilarityCall([(row["goal"], row["prompt"]) for row in drawn], config.batch_size)
        for _, found in encoder.map(similarity, [(call,)]) if drawn else ():
            for row, value in zip(drawn, found, strict=True):
                row |= {"error": f"encoder: {value.error}"} if isinstance(value, Failure) else {"goal_similarity": value}


def _request(row: Row) -> InfillRequest:
    return InfillRequest(row["candidate_id"], row["target"], row["prompt_tokens"], row["seed"])
