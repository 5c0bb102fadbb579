"""What went wrong so far, kept outside the processes that can die of it.

A plain class. `plan.py` runs it as a Ray actor, so that the pools' actors share one count of failed rows and know
which rows an earlier process was working on when it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dat_ray.data.error_limit import ErrorLimit
from dat_ray.errors import DatError

# A row that was in the hands of this many processes when they ended is given up. The first of them held the whole
# batch, so that two ended on the row alone: one machine that is taken away does not condemn a row.
TRIES_PER_ROW = 3
# Processes of a pool, for each of its actors, that may end while they load their engine before the stage gives up.
STARTS_PER_ACTOR = 3
# What a role has done with a row, in the order in which a row passes.
DEEDS = {"sampler": "drawn", "target": "answered", "judge": "judged"}


class Ledger:
    """Failed rows, unfinished tries, and the reason to stop once there is one.

    Args:
        limit: rows that may fail.
        failed: rows that failed in an earlier run of the stage, id -> error.
    """

    def __init__(self, limit: ErrorLimit, failed: Mapping[str, str]) -> None:
        self._limit = limit
        self._failed = dict(failed)
        self._tries: Counter[tuple[str, str]] = Counter()
        self._starts: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._last_death: dict[str, str] = {}
        self._stop: DatError | None = None

    def starting(self, role: str, actors: int) -> None:
        """A process begins to load its engine.

        Args:
            role: whose engine.
            actors: the pool's largest size: so many may load at once without anything being wrong.

        Raises:
            DatError: the stage has stopped, or too many processes began and none has come through.
        """
        self._starts[role] += 1
        if self._starts[role] > STARTS_PER_ACTOR * actors:
            self.stop(
                DatError(
                    f"the {role} did not start: {self._starts[role] - 1} processes ended while they loaded it "
                    f"({self.death(role)})"
                )
            )
        if self._stop is not None:
            raise self._stop

    def started(self, role: str) -> None:
        """A process has loaded its engine."""
        self._starts[role] = 0

    def open_tries(self, role: str, ids: Iterable[str]) -> list[int]:
        """How many processes ended while they worked on each row.

        Raises:
            DatError: the stage has stopped.
        """
        if self._stop is not None:
            raise self._stop
        return [self._tries[role, identifier] for identifier in ids]

    def begin(self, role: str, ids: Iterable[str]) -> None:
        """A process starts to work on these rows."""
        self._tries.update((role, identifier) for identifier in ids)

    def end(self, role: str, ids: Iterable[str], errors: Mapping[str, str], again: bool = False) -> None:
        """A process has finished with these rows, of which some failed.

        Args:
            role: whose work it was.
            ids: of the rows.
            errors: of those that failed.
            again: whether each of them is to be tried alone.

        Raises:
            DatError: more rows have failed than may.
        """
        for identifier in ids:
            del self._tries[role, identifier]
            self._done[role] += not (again or identifier in errors)
        self._failed.update(errors)
        if len(self._failed) > self._limit.rows:
            first = next(iter(self._failed.values()))
            self.stop(
                DatError(
                    f"generate stopped: {len(self._failed)} of {self._limit.total} rows failed, more than "
                    f"{self._limit.setting} = {self._limit.rate:g} allows; the first: {first}"
                )
            )
        if self._stop is not None:
            raise self._stop

    def dying(self, role: str, reason: str) -> None:
        """A process is about to end because its engine cannot go on."""
        self._last_death[role] = reason

    def death(self, role: str) -> str:
        """Why a process of this role ended last, as far as it could say."""
        return self._last_death.get(role, "no reason was left: killed, out of memory, or a crash in native code")

    def stop(self, reason: DatError) -> None:
        """Makes every process of the stage give up at its next row. The first reason counts."""
        self._stop = self._stop or reason

    def reason(self) -> DatError | None:
        """Why the stage has stopped, or None."""
        return self._stop

    def failed(self) -> int:
        """Rows that failed, those of earlier runs among them."""
        return len(self._failed)

    def note(self) -> str:
        """What is going on, for a person who waits: how far rows of this call have come, before the first one is stored.

        A row whose process ended before its work was taken over is counted twice.
        """
        loading = [role for role, starts in self._starts.items() if starts]
        done = [f"{self._done[role]} {deed}" for role, deed in DEEDS.items() if self._done[role]]
        said = [*done, *(["loading " + ", ".join(loading)] if loading else [])]
        if not said:
            said = ["running" if self._starts else "waiting for processes"]
        return ", ".join([*said, *([f"{len(self._failed)} failed"] if self._failed else [])])
