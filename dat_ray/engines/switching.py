"""One engine for several models that differ in their adapter alone: each call says with which adapter it is to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dat_ray.engines.pieces import ByRows
from dat_ray.engines.workers import Workers


class Mapper(Protocol):
    """Does work in a pool of engines."""

    def map(self, work: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See `Workers.map`."""
        ...


@dataclass(frozen=True)
class WithAdapter:
    """Work of an engine, done with an adapter: a process that takes over from a lost one has it too. Picklable.

    Attributes:
        work: what is to be done; its marks for a pool stay.
        adapter: folder or URI of a LoRA adapter; None for the model as it is.
    """

    work: Callable[..., Any]
    adapter: str | None

    @property
    def by_rows(self) -> ByRows | None:
        """How `dat_ray.engines.pieces` takes the work's payloads apart."""
        return getattr(self.work, "by_rows", None)

    def __call__(self, engine: Any, *payload: Any) -> Any:
        engine.use_adapter(self.adapter)
        return self.work(engine, *payload)


@dataclass(frozen=True)
class AdapterWorkers:
    """Workers that serve one of several models. Their engines say `switches_adapters`."""

    workers: Workers
    adapter: str | None

    def map(self, work: Callable[..., Any], payloads: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """See `Workers.map`."""
        return self.workers.map(WithAdapter(work, self.adapter), payloads)
