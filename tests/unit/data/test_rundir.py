from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dat_ray.config.loading import fingerprint, load_recipe
from dat_ray.data import rundir
from dat_ray.data.rundir import RunDir, open_run, open_to_read
from dat_ray.errors import InputError


def test_a_new_run_records_what_it_is(tmp_path) -> None:
    recipe = load_recipe("demo")
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    record = json.loads(open(run.record).read())
    assert record["fingerprint"] == fingerprint(recipe)
    assert record["recipe"]["sampler"]["steps"] == recipe.sampler.steps
    assert record["packages"]["pyarrow"]


def test_a_run_is_continued_only_when_asked(tmp_path) -> None:
    root = str(tmp_path / "r")
    recipe = load_recipe("demo")
    open_run(root, recipe, resume=True)
    with pytest.raises(InputError, match="--resume"):
        open_run(root, recipe, resume=False)
    assert open_run(root, recipe, resume=True).root == root


def test_another_recipe_is_refused_with_the_fields_that_differ(tmp_path) -> None:
    root = str(tmp_path / "r")
    open_run(root, load_recipe("demo", ["seed=1"]), resume=False)
    with pytest.raises(InputError, match="seed: 1 -> 2"):
        open_run(root, load_recipe("demo", ["seed=2"]), resume=True)


def test_a_folder_with_other_things_is_not_taken_over(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        open_run(str(tmp_path), load_recipe("demo"), resume=False)


def rewritten(run: RunDir, **changes: Any) -> None:
    """Changes entries of `run.json`, as another version of the program might have written them."""
    record = json.loads(Path(run.record).read_text())
    Path(run.record).write_text(json.dumps(record | changes))


def test_what_changes_no_row_may_differ_when_a_run_goes_on(tmp_path) -> None:
    """The remedy after an out-of-memory error is a smaller batch, in the same run."""
    recipe = load_recipe("demo", ["target.dtype=float32"])
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    before = Path(run.record).read_bytes()
    sizes = ["target.batch_size=4", "target.kv_cache_gib=0.5", "training.micro_rows=1"]
    smaller = load_recipe("demo", ["target.dtype=float32", *sizes])
    assert open_run(run.root, smaller, resume=True).fingerprint_of(smaller) == fingerprint(recipe)
    assert Path(run.record).read_bytes() == before
    with pytest.raises(InputError, match=r"target.dtype: 'float32' -> 'float16'"):
        open_run(run.root, load_recipe("demo", ["target.batch_size=4", "target.dtype=float16"]), resume=True)


def test_a_run_of_an_earlier_version_keeps_its_fingerprint(tmp_path) -> None:
    recipe = load_recipe("demo")
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    tree = json.loads(Path(run.record).read_text())["recipe"]
    # A field that came later is not there, and one is that has gone since.
    del tree["sampler"]["refine"], tree["training"]["stop_away"]
    rewritten(run, fingerprint="0123456789abcdef", recipe=tree | {"round": 0})
    assert open_run(run.root, recipe, resume=True).fingerprint_of(recipe) == "0123456789abcdef"
    # Another recipe's files are not found by it.
    other = load_recipe("demo", ["seed=2"])
    assert run.fingerprint_of(other) == fingerprint(other)
    with pytest.raises(InputError, match="seed: 20261123 -> 2"):
        open_run(run.root, other, resume=True)


def test_a_default_that_has_changed_since_is_told_as_a_difference(tmp_path) -> None:
    run = open_run(str(tmp_path / "r"), load_recipe("demo"), resume=False)
    tree = json.loads(Path(run.record).read_text())["recipe"]
    tree["evaluation"]["bootstrap"] = 500
    rewritten(run, recipe=tree)
    with pytest.raises(InputError, match=r"another recipe \(evaluation.bootstrap: 500 -> 2000\)"):
        open_run(run.root, load_recipe("demo"), resume=True)


def test_a_later_versions_run_can_be_looked_at_and_not_continued(tmp_path, capsys) -> None:
    recipe = load_recipe("demo")
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    tree = json.loads(Path(run.record).read_text())["recipe"]
    tree["sampler"]["novelty"], tree["training"]["attack"]["restarts"], tree["weather"] = 0.5, 3, {"sun": True}
    rewritten(run, recipe=tree, dat_ray="7.1", later_entry=[1])
    _, record = open_to_read(f"{run.root}/")
    assert (record.recipe, record.fingerprint, record.version) == (recipe, fingerprint(recipe), "7.1")
    assert set(record.unknown) == {"sampler.novelty", "training.attack.restarts", "weather"}
    [line] = capsys.readouterr().err.splitlines()
    assert "7.1" in line
    assert all(field in line for field in record.unknown)
    with pytest.raises(InputError, match=r"holds a run of dat_ray 7.1 with fields that .* does not know \(.*sampler.novelty"):
        open_run(run.root, recipe, resume=True)
    assert run.fingerprint_of(recipe) == fingerprint(recipe)


def test_names_of_an_altered_record_stay_on_their_line(tmp_path, capsys) -> None:
    run = open_run(str(tmp_path / "r"), load_recipe("demo"), resume=False)
    tree = json.loads(Path(run.record).read_text())["recipe"]
    tree["sampler"]["x\n\x1b[2Jdone"] = 1
    rewritten(run, recipe=tree, dat_ray="7\n\x1b[2J")
    open_to_read(run.root)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "\x1b" not in printed
    with pytest.raises(InputError) as caught:
        open_run(run.root, load_recipe("demo"), resume=True)
    assert not {"\n", "\x1b"} & set(str(caught.value))


def _without(tree: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in names}


JUNK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda record: [record],
    "null": lambda record: None,
    "no recipe": lambda record: _without(record, "recipe"),
    "a recipe that is text": lambda record: record | {"recipe": "demo"},
    "a recipe without target": lambda record: record | {"recipe": _without(record["recipe"], "target")},
    "a section that is a list": lambda record: record | {"recipe": record["recipe"] | {"training": []}},
    "a value of another kind": lambda record: record | {"recipe": record["recipe"] | {"seed": "many"}},
    "another round": lambda record: record | {"recipe": record["recipe"] | {"round": 3}},
    "an unknown judge": lambda record: record | {"recipe": record["recipe"] | {"judge": {"name": "of 2031"}}},
}


@pytest.mark.parametrize("kind", [*JUNK, "no JSON", "cut short", "no text", "deep"])
def test_a_record_that_cannot_be_understood_is_one_line(tmp_path, kind: str) -> None:
    run = open_run(str(tmp_path / "r"), load_recipe("demo"), resume=False)
    path = Path(run.record)
    record = json.loads(path.read_text())
    broken = {
        "no JSON": b"name: demo",
        "cut short": path.read_bytes()[:200],
        "no text": b"\xff\xfe\x00{",
        "deep": b'{"recipe": {"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    }
    path.write_bytes(broken[kind] if kind in broken else json.dumps(JUNK[kind](record)).encode())
    for look in (lambda: open_to_read(run.root), lambda: open_run(run.root, load_recipe("demo"), resume=True)):
        with pytest.raises(InputError, match=r"run\.json") as caught:
            look()
        assert "\n" not in str(caught.value)


def test_entries_that_are_missing_are_no_obstacle(tmp_path) -> None:
    recipe = load_recipe("demo")
    run = open_run(str(tmp_path / "r"), recipe, resume=False)
    Path(run.record).write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    _, record = open_to_read(run.root)
    assert (record.fingerprint, record.version) == (fingerprint(recipe), "an unknown version")
    assert open_run(run.root, recipe, resume=True) == run


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("theirs", ["seed=2", "seed=1"])
def test_a_driver_that_comes_second_leaves_the_record_of_the_first(
    tmp_path, monkeypatch: pytest.MonkeyPatch, theirs: str, resume: bool
) -> None:
    """Both have seen an empty directory; the other one has the lock first."""
    root, hold = str(tmp_path / "r"), rundir.hold
    first = []

    @contextmanager
    def second(place: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(rundir, "hold", hold)
            first.append(open_run(place, load_recipe("demo", [theirs]), resume=False))
        with hold(place):
            yield

    monkeypatch.setattr(rundir, "hold", second)
    mine = load_recipe("demo", ["seed=1"])
    if theirs == "seed=1" and resume:
        assert open_run(root, mine, resume) == first[0]
    else:
        with pytest.raises(InputError, match="another recipe" if theirs == "seed=2" else "add --resume"):
            open_run(root, mine, resume)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["seed"] == int(theirs[-1])


def test_a_folder_that_holds_only_the_lock_is_empty_and_a_refused_one_gets_none(tmp_path) -> None:
    with rundir.hold(str(tmp_path / "r")):
        pass
    assert list((tmp_path / "r").iterdir())
    open_run(str(tmp_path / "r"), load_recipe("demo"), resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        open_run(str(tmp_path / "mine"), load_recipe("demo"), resume=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("field", "said"),
    [("description", "an access token"), ("name", None)],
)
def test_a_token_that_stands_in_a_recipe_is_refused_by_its_form(tmp_path: Path, field: str, said: str | None) -> None:
    """No variable of the environment holds it: nobody but its form tells that it is one."""
    recipe = load_recipe("demo", [f"{field}={'hf_' + 'a1B2c3D4e5' * 3 if said else 'hf_short'}"])
    if said is None:
        open_run(str(tmp_path / "run"), recipe, resume=False)
        return
    with pytest.raises(InputError, match=f"holds {said}: name the environment variable, never its value") as caught:
        open_run(str(tmp_path / "run"), recipe, resume=False)
    assert "hf_a1B2" not in str(caught.value)
    assert not (tmp_path / "run").exists()
