from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dat_ray.data import shards as files
from dat_ray.data.ids import row_id
from dat_ray.data.schemas import CANDIDATES
from dat_ray.data.shards import has_manifest, read_manifest, read_table, write_shard
from dat_ray.errors import DatError
from dat_ray.generation import finish as finish_module
from dat_ray.generation.finish import CHECKPOINT, committed_checkpoints, forget_lost_rows, publish, take_inventory
from dat_ray.generation.watch import RowCounter


def row(identifier: str, error: str | None = None) -> dict:
    return {
        "candidate_id": identifier,
        "behavior_id": "b",
        "target_index": 0,
        "round": 0,
        "sample_index": 0,
        "goal": "g",
        "target": "t",
        "refusal": "r",
        "prompt_tokens": 4,
        "seed": 1,
        "sampler": "s",
        "prompt": f"prompt {identifier}",
        "nfe": 4,
        "error": error,
    }


def shard(root: Path, name: str, *ids: str, error: str | None = None, checkpoint: bool = True) -> None:
    write_shard(str(root), f"{name}-0.parquet", pa.Table.from_pylist([row(i, error) for i in ids], schema=CANDIDATES))
    if checkpoint:
        write_shard(str(root / CHECKPOINT), f"{name}.parquet", pa.table({"candidate_id": list(ids)}))


def ids(root: Path) -> list[str]:
    return read_table(str(root))["candidate_id"].to_pylist()


def finish(root: Path, expected: str) -> None:
    publish(str(root), list(expected), take_inventory(str(root)), "f" * 16)


def test_whole_shards_are_published_as_they_are(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    shard(tmp_path, "part-b", "3")
    finish(tmp_path, "123")
    assert [file.path for file in read_manifest(str(tmp_path)).files] == ["part-a-0.parquet", "part-b-0.parquet"]
    assert sorted(ids(tmp_path)) == ["1", "2", "3"]
    assert not (tmp_path / "errors").exists()


def test_rows_in_two_shards_are_published_once(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    shard(tmp_path, "part-b", "2", "3")
    shard(tmp_path, "part-c", "1", "3")
    finish(tmp_path, "123")
    assert sorted(ids(tmp_path)) == ["1", "2", "3"]
    whole, rest = [file.path for file in read_manifest(str(tmp_path)).files]
    assert whole == "part-a-0.parquet"
    assert rest == f"rest-{row_id('3')}-of-part-b-0.parquet"
    assert pq.read_table(tmp_path / "part-b-0.parquet").num_rows == 2  # a finished shard is never written again


def test_publishing_again_after_a_crash_gives_the_same(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    shard(tmp_path, "part-b", "2", "3")
    finish(tmp_path, "123")
    first = (tmp_path / "_manifest.json").read_bytes()
    (tmp_path / "_manifest.json").unlink()
    finish(tmp_path, "123")
    assert (tmp_path / "_manifest.json").read_bytes() == first


def test_a_missing_or_unknown_row_keeps_the_manifest_from_being_written(tmp_path):
    shard(tmp_path, "part-a", "1", "9")
    with pytest.raises(DatError, match="lacks 2 of 3 rows and has 1 that are not of this round"):
        finish(tmp_path, "123")
    assert not has_manifest(str(tmp_path))


def test_failed_rows_are_listed_apart_and_stay_in_the_shards(tmp_path):
    shard(tmp_path, "part-a", "1")
    shard(tmp_path, "part-b", "2", error="sampler: no")
    finish(tmp_path, "12")
    assert read_table(str(tmp_path / "errors")).to_pylist() == [
        {"candidate_id": "2", "behavior_id": "b", "target_index": 0, "sample_index": 0, "error": "sampler: no"}
    ]
    assert sorted(ids(tmp_path)) == ["1", "2"]
    assert take_inventory(str(tmp_path)).errors == {"2": "sampler: no"}


def test_a_truncated_shard_is_found_and_its_rows_are_asked_for_again(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    shard(tmp_path, "part-b", "3")
    whole = (tmp_path / "part-a-0.parquet").read_bytes()
    (tmp_path / "part-a-0.parquet").write_bytes(whole[:-20])
    inventory = take_inventory(str(tmp_path))
    assert list(inventory.damaged) == ["part-a-0.parquet"]
    assert inventory.ids == {"3"}
    with pytest.raises(DatError, match=r"lacks 2 of 3 rows .*not readable: part-a-0.parquet"):
        publish(str(tmp_path), ["1", "2", "3"], inventory, "f" * 16)
    assert forget_lost_rows(str(tmp_path), inventory) == 1
    assert committed_checkpoints(str(tmp_path)) == ["part-b.parquet"]
    assert (tmp_path / "part-a-0.parquet").exists()  # only the checkpoint goes


def test_checkpoints_whose_rows_are_there_are_kept(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 0
    (tmp_path / CHECKPOINT / "part-z.parquet").write_bytes(b"PAR1 cut")
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 1
    assert committed_checkpoints(str(tmp_path)) == ["part-a.parquet"]


def test_only_committed_shards_count_as_done(tmp_path):
    shard(tmp_path, "part-a", "1", "2")
    shard(tmp_path, "part-b", "3", checkpoint=False)
    write_shard(str(tmp_path / CHECKPOINT), "part-b.pending.parquet", pa.table({"candidate_id": ["3"]}))
    counter = RowCounter(str(tmp_path))
    assert counter.count() == 2
    (tmp_path / CHECKPOINT / "part-b.pending.parquet").rename(tmp_path / CHECKPOINT / "part-b.parquet")
    assert counter.count() == 3
    assert RowCounter(str(tmp_path / "nothing")).count() == 0


def test_a_resume_reads_every_shard_a_fixed_number_of_times(tmp_path, monkeypatch):
    """Linear growth, told by counting what is read and not by the clock."""
    counts = []
    for shards in (4, 8, 16):
        root = tmp_path / str(shards)
        for number in range(shards):
            shard(root, f"part-{number:03}", f"{number}a", f"{number}b")
        opened: list[str] = []
        listed: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(
                files, "read_bytes", lambda path, keep=opened, read=files.read_bytes: (keep.append(path), read(path))[1]
            )
            for name in ("scan_shards", "shard_sizes"):
                found = getattr(files, name)
                patch.setattr(finish_module, name, lambda path, keep=listed, found=found: (keep.append(path), found(path))[1])
            inventory = take_inventory(str(root))
            forget_lost_rows(str(root), inventory)
            publish(str(root), sorted(inventory.ids), inventory, "f" * 16)
        assert len(set(opened)) == 2 * shards
        counts.append((len(opened), len(listed)))
    assert counts == [(2 * shards, 2) for shards in (4, 8, 16)], "one reading of each shard and of each checkpoint"


def test_many_checkpoints_become_one_that_promises_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(finish_module, "MOST_CHECKPOINTS", 3)
    for name in "abcd":
        shard(tmp_path, f"part-{name}", f"{name}1", f"{name}2")
    # Its shard was never committed: Ray removes it with the checkpoint, so that its row is not promised.
    write_shard(str(tmp_path / CHECKPOINT), "part-e.pending.parquet", pa.table({"candidate_id": ["e1"]}))
    whole = (tmp_path / "part-d-0.parquet").read_bytes()
    counter = RowCounter(str(tmp_path))
    assert counter.count() == 8
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 0
    [joined] = committed_checkpoints(str(tmp_path))
    assert promised(tmp_path, joined) == ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2"]
    assert (tmp_path / CHECKPOINT / "part-e.pending.parquet").exists()
    assert counter.count() == 8

    # Of a process that ended before it had removed them all.
    for name in "abc":
        write_shard(str(tmp_path / CHECKPOINT), f"part-{name}.parquet", pa.table({"candidate_id": [f"{name}1", f"{name}2"]}))
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 0
    assert committed_checkpoints(str(tmp_path)) == [joined]

    (tmp_path / "part-d-0.parquet").write_bytes(whole[:-20])
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 1
    [rest] = committed_checkpoints(str(tmp_path))
    assert promised(tmp_path, rest) == ["a1", "a2", "b1", "b2", "c1", "c2"]


@pytest.mark.parametrize("readers", [1, 3, 8])
def test_shards_are_in_the_order_of_their_names_whoever_reads_them(tmp_path, monkeypatch, readers: int) -> None:
    monkeypatch.setattr(finish_module, "_readers", lambda root: readers)
    assert take_inventory(str(tmp_path)).shards == ()
    names = "gbdacfe"
    for name in names:
        shard(tmp_path, f"part-{name}", f"{name}1", f"{name}2", error="lost" if name == "d" else None)
    (tmp_path / "part-f-0.parquet").write_bytes(b"PAR1")
    found = take_inventory(str(tmp_path))
    assert [one.file.path for one in found.shards] == [f"part-{name}-0.parquet" for name in "abcdeg"]
    assert [one.ids for one in found.shards] == [(f"{name}1", f"{name}2") for name in "abcdeg"]
    assert {one.nfe for one in found.shards} == {8}
    assert found.errors == {"d1": "lost", "d2": "lost"}
    assert list(found.damaged) == ["part-f-0.parquet"]


def test_few_checkpoints_stay_as_they_are(tmp_path):
    for name in "abcd":
        shard(tmp_path, f"part-{name}", name)
    assert forget_lost_rows(str(tmp_path), take_inventory(str(tmp_path))) == 0
    assert committed_checkpoints(str(tmp_path)) == [f"part-{name}.parquet" for name in "abcd"]


def test_a_shard_that_is_known_is_read_again_only_where_its_size_is_another(tmp_path, monkeypatch):
    for name in "abc":
        shard(tmp_path, f"part-{name}", name)
    known = take_inventory(str(tmp_path))
    shard(tmp_path, "part-d", "d")
    (tmp_path / "part-a-0.parquet").write_bytes((tmp_path / "part-a-0.parquet").read_bytes()[:-20])
    (tmp_path / "part-b-0.parquet").unlink()
    opened: list[str] = []
    monkeypatch.setattr(files, "read_bytes", lambda path, keep=opened, read=files.read_bytes: (keep.append(path), read(path))[1])
    found = take_inventory(str(tmp_path), known)
    assert sorted(path.rpartition("/")[2] for path in opened) == ["part-a-0.parquet", "part-d-0.parquet"]
    assert found.ids == {"c", "d"}
    assert list(found.damaged) == ["part-a-0.parquet"]


def promised(root, name):
    return pq.read_table(root / CHECKPOINT / name)["candidate_id"].to_pylist()


def test_rows_without_a_judge_are_made_again_and_their_neighbors_are_not(tmp_path):
    rows = [row("1"), row("2", "judge: status 429: slow down"), row("3", "sampler: no")]
    write_shard(str(tmp_path), "part-a-0.parquet", pa.Table.from_pylist(rows, schema=CANDIDATES))
    write_shard(str(tmp_path / CHECKPOINT), "part-a.parquet", pa.table({"candidate_id": ["1", "2", "3"]}))
    shard(tmp_path, "part-b", "4")
    stored = take_inventory(str(tmp_path))
    assert set(stored.errors) == {"2", "3"}
    inventory = stored.to_resume()
    assert inventory.ids == {"1", "3", "4"}
    assert inventory.errors == {"3": "sampler: no"}, "what failed for good counts against the limit"
    assert forget_lost_rows(str(tmp_path), inventory) == 1
    kept = [
        pq.read_table(tmp_path / CHECKPOINT / name)["candidate_id"].to_pylist() for name in committed_checkpoints(str(tmp_path))
    ]
    assert sorted(kept) == [["1", "3"], ["4"]], "Ray reads these, and makes row 2 alone"
    assert forget_lost_rows(str(tmp_path), inventory) == 0

    # The new row is in a shard that comes later by name, and counts.
    shard(tmp_path, "part-c", "2")
    finish(tmp_path, "1234")
    published = {found["candidate_id"]: found["error"] for found in read_table(str(tmp_path)).to_pylist()}
    assert published == {"1": None, "2": None, "3": "sampler: no", "4": None}
    assert read_table(str(tmp_path / "errors"))["candidate_id"].to_pylist() == ["3"]


def test_a_row_that_failed_twice_is_published_once(tmp_path):
    shard(tmp_path, "part-a", "1", error="judge: away")
    shard(tmp_path, "part-b", "1", error="judge: still away")
    finish(tmp_path, "1")
    assert [found["error"] for found in read_table(str(tmp_path)).to_pylist()] == ["judge: away"]
