"""Replays, with judges in this process: what is read again, and which figures are made anew."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.data.schemas import ATTEMPTS
from dat_ray.data.shards import read_manifest, read_table, write_manifest, write_shard
from dat_ray.engines.base import Judgment
from dat_ray.evaluation.questions import UNREADABLE
from dat_ray.pipeline.evaluations import rescore
from tests.unit.pipeline.test_trusted_run import STORED, HereWorkers


class Reader:
    """A judge of harm that notes what it reads."""

    name, fingerprint, is_proxy, deviations = "reader", "0", False, ()

    def __init__(self) -> None:
        self.read: list[str] = []

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        self.read += completions
        return [Judgment("not_harmful", 0.0) for _ in completions]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Reads for every judge, without Ray."""
    found = Reader()
    monkeypatch.setattr("dat_ray.evaluation.rescore.start_ray", lambda cluster: nullcontext())
    monkeypatch.setattr("dat_ray.evaluation.judges.Workers", lambda role, *_: HereWorkers(role, lambda: found))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished evaluation without its run."""
    return Path(shutil.copytree(STORED / "evaluation" / "default", tmp_path / "default"))


def rewrite(folder: Path, change: Any) -> None:
    """Changes the rows of an evaluation, each in place."""
    manifest = read_manifest(str(folder))
    files = []
    for file in manifest.files:
        rows = [row | change(row) for row in pq.read_table(folder / file.path).to_pylist()]
        files.append(write_shard(str(folder), file.path, pa.Table.from_pylist(rows, schema=ATTEMPTS)))
    write_manifest(str(folder), files, manifest.fingerprint)


def test_an_empty_translation_that_an_older_version_stored_is_no_verdict(folder: Path, reader: Reader) -> None:
    before = read_table(str(folder)).to_pylist()
    attacked = [row["attempt_id"] for row in before if row["attack"] == "direct" and row["completion"]]
    instead = dict(zip(attacked, ("", " \n", "in English"), strict=False))
    rewrite(folder, lambda row: {"judged_text": instead.get(row["attempt_id"])})
    rescore(str(folder), "refusal-opening", [], "again")
    found = {row["attempt_id"]: row for row in read_table(str(folder.parent / "again")).to_pylist()}
    assert [(found[one]["verdict"], found[one]["error"]) for one in attacked[:3]] == [
        (None, f"{UNREADABLE} is empty"),
        (None, f"{UNREADABLE} is empty"),
        ("not_harmful", None),
    ]
    assert "in English" in reader.read
    assert not {"", " \n"} & set(reader.read)
