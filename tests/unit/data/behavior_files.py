"""Small tables of behaviors, and what is read of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.data import BehaviorsConfig
from dat_ray.data.behaviors import BehaviorSet, load_behaviors
from dat_ray.errors import InputError

HELDOUT = {"path": "builtin:demo-heldout", "limit": 1}


def load(**section: Any) -> BehaviorSet:
    return load_behaviors(BehaviorsConfig.model_validate({"heldout": HELDOUT, **section}))


def rows_of(found: BehaviorSet, split: str = "train") -> list[dict[str, Any]]:
    return [row for row in found.table.to_pylist() if row["split"] == split]


def csv_file(path: Path, header: list[str], *rows: list[str]) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def jsonl_file(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def field_of(section: dict[str, Any]) -> tuple[str, object, str]:
    with pytest.raises(InputError) as caught:
        load(**section)
    assert "\n" not in str(caught.value)
    return caught.value.field, caught.value.value, caught.value.remedy


def harmbench(folder: Path, targets: object) -> dict[str, str]:
    header = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
    behaviors = csv_file(
        folder / "b.csv",
        header,
        ["goal one", "standard", "s", "", "", "one"],
        ["goal two", "", "s", "", "", "two"],
        ["goal three", "contextual", "s", "", "context", "three"],
        ["goal four", "copyright", "s", "", "", "four"],
    )
    (folder / "t.json").write_text(targets if isinstance(targets, str) else json.dumps(targets), "utf-8")
    return {"path": behaviors, "targets_path": str(folder / "t.json")}
