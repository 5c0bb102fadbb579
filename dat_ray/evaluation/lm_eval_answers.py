"""A model's answers to lm-eval's requests, in files: whoever goes on with a benchmark does not ask again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dat_ray.data.ids import row_id
from dat_ray.data.shards import join, scan_shards, write_bytes
from dat_ray.data.stored import stored_object, well_formed


class Request(Protocol):
    """What lm-eval asks: texts, and settings of a generation."""

    args: tuple[Any, ...]


class StoredAnswers:
    """Answers by the id of their request: log p with greediness, log p, or a text.

    Args:
        folder: of one model, local or a URI. Each file holds the answers of some requests and has the first one's id as its
            name, so that two writers never take one another's.
        asked: what answers depend on beside the request: weights, number format, seed.
        lot: requests that the model is given at once.
        seconds: a lot that ends so long after the last file makes the next one: what a kill can cost.
    """

    def __init__(self, folder: str, asked: str, lot: int, seconds: float) -> None:
        self._folder, self._asked, self._lot, self._seconds = folder, asked, lot, seconds
        self._answers: dict[str, Any] = {}
        self._unwritten: dict[str, Any] = {}
        self._written = time.monotonic()
        for name in scan_shards(folder, ".json"):
            path = join(folder, name)
            stored = stored_object(path, finite=False)
            with well_formed(path):
                self._answers |= {key: _read(answer) for key, answer in stored["answers"].items()}

    def ask(self, kind: str, model: Callable[[str, Sequence[Request]], Sequence[Any]], requests: Sequence[Request]) -> list[Any]:
        """Answers in the order of the requests; the model gets those that have none yet, lot by lot.

        Args:
            kind: of the requests, as lm-eval calls it.
            model: takes the id of the first request, for its random numbers, and the requests.
            requests: equal ones are asked as often as they are there.
        """
        ids = self._ids(kind, requests)
        for start in range(0, len(ids), self._lot):
            lot = [i for i in range(start, min(start + self._lot, len(ids))) if ids[i] not in self._answers]
            if lot:
                given = model(ids[lot[0]], [requests[i] for i in lot])
                fresh = dict(zip((ids[i] for i in lot), given, strict=True))
                self._answers |= fresh
                self._unwritten |= fresh
                if time.monotonic() >= self._written + self._seconds:
                    self._write()
        self._write()
        return [self._answers[key] for key in ids]

    def _ids(self, kind: str, requests: Sequence[Request]) -> list[str]:
        times: Counter[str] = Counter()
        ids = []
        for request in requests:
            text = json.dumps(request.args)
            ids.append(row_id(self._asked, kind, text, times[text]))
            times[text] += 1
        return ids

    def _write(self) -> None:
        if self._unwritten:
            path = join(self._folder, f"{next(iter(self._unwritten))}.json")
            write_bytes(path, json.dumps({"answers": self._unwritten}).encode())
            self._unwritten = {}
        self._written = time.monotonic()


def _read(answer: Any) -> Any:
    """An answer as the model gave it, of what JSON makes of it."""
    if isinstance(answer, list):
        log_p, greedy = answer
        return float(log_p), bool(greedy)
    if not isinstance(answer, str | float):
        raise TypeError(f"an answer is a {type(answer).__name__}")
    return answer
