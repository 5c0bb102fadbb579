"""How many candidates of the searches came back from their text as the tokens that were searched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any


def survival(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """By model and attack: what searches for a suffix had to choose from.

    A step without any candidate repeats its suffix, so a search of many such steps is a weak attack, and its model looks robust.

    Args:
        rows: of schema SEARCHES. Searches that failed, that look for no suffix, or were stored before candidates were counted
            are left out.

    Returns:
        `searches`, `steps`, `steps_without` (of the steps, those in which no candidate survived), `drawn` and `survived`
        (candidates looked at, and those of them that survived).
    """
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for row in rows:
        survived = row.get("survived")
        if row.get("attack") is None or survived is None:
            continue
        counts = {
            "searches": 1,
            "steps": len(survived),
            "steps_without": survived.count(0),
            "drawn": sum(row["drawn"]),
            "survived": sum(survived),
        }
        before = found[row["model"]].get(row["attack"], {})
        found[row["model"]][row["attack"]] = {name: before.get(name, 0) + value for name, value in counts.items()}
    return dict(found)
