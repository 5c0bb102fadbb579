"""A run directory that somebody altered makes this machine contact, read and write nothing outside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import yaml

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.config.schema import Recipe
from dat_ray.data.links import refuse_links
from dat_ray.data.rundir import open_run
from dat_ray.data.shards import has_manifest, read_table
from dat_ray.errors import InputError
from tests.unit.engines.scripted_server import Served, serve

STORED = Path(__file__).parents[2] / "fixtures" / "run_0_1"
SECRET = "letters-from-home"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_LETTERS", SECRET)


@pytest.fixture
def server() -> Iterator[Served]:
    with serve(lambda body: "#scores: 1, 1, 1") as found:
        yield found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "home" / "run"))


def altered(path: Path, change: Change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def reader(url: str, **more: Any) -> dict[str, Any]:
    endpoint = {"url": url, "api_key_env": "HOME_LETTERS", "retries": 0}
    return {"name": "strongreject-rubric", "reader": {"model": "m", "backend": "endpoint", "endpoint": endpoint}, **more}


def second_judge(url: str) -> Change:
    return lambda tree: tree["recipe"]["evaluation"].update(second_judge=reader(url))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class HereWorkers:
    """A pool of one, in this process."""

    def __init__(self, role: str, build: Callable[[], Any], *_: Any) -> None:
        self._engine = build()
        self.about = {"name": self._engine.name, "fingerprint": self._engine.fingerprint, "is_proxy": False}

    def __enter__(self) -> HereWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def wait(self) -> dict[str, Any]:
        return self.about

    def map(self, work: Callable[..., Any], payloads: list[tuple]) -> Iterator[tuple[int, Any]]:
        for index, payload in enumerate(payloads):
            yield index, work(self._engine, *payload)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges without Ray."""
    monkeypatch.setattr("dat_ray.evaluation.rescore.start_ray", lambda cluster: nullcontext())
    monkeypatch.setattr("dat_ray.evaluation.judges.Workers", HereWorkers)


@pytest.mark.usefixtures("here")
def test_an_altered_replay_sends_no_request_and_writes_nothing(
    root: Path, server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "evaluation" / "default"
    altered(folder / "replay.json", second_judge(server.url))
    before = contents(tmp_path)
    assert main(["evaluate", "--replay", str(folder), "--judge", "refusal-opening"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dat evaluate")]
    for shown in (f"evaluation.second_judge.reader.endpoint.url = '{server.url}' (address)", "'HOME_LETTERS'", "--trust-run-dir"):
        assert shown in line
    assert SECRET not in line
    assert server.asked == []
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("here")
def test_a_replay_imports_no_class_of_an_attack_that_somebody_put_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = root / "evaluation" / "default"
    altered(folder / "replay.json", lambda tree: tree["recipe"]["evaluation"].update(attacks=["theirs:Some"]))
    before = contents(root)
    assert main(["evaluate", "--replay", str(folder), "--judge", "refusal-opening"]) == 2
    assert "evaluation.attacks = 'theirs:Some' (class to import)" in capsys.readouterr().err
    assert contents(root) == before


@pytest.mark.usefixtures("here")
def test_a_replay_that_is_vouched_for_asks_the_judge(
    root: Path, server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "evaluation" / "default"
    altered(folder / "replay.json", second_judge(server.url))
    command = ["evaluate", "--replay", str(folder), "--judge", "refusal-opening"]
    assert main([*command, "--trust-run-dir"]) == 0
    assert "is trusted with evaluation.second_judge.reader.endpoint.url" in capsys.readouterr().err
    attacked = sum(row["attack"] != "over_refusal" for row in read_table(str(folder)).to_pylist())
    assert len(server.asked) == attacked
    assert {asked["authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}

    # What the person's own recipe says too needs no word; what it says otherwise does.
    tree = json.loads((folder / "replay.json").read_text())["recipe"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    mine = ["evaluate", str(tmp_path / "mine.yaml"), *command[1:]]
    assert main([*mine, "--suite", "again"]) == 0
    assert len(server.asked) == 2 * attacked
    tree["evaluation"]["second_judge"]["reader"]["endpoint"]["api_key_env"] = "MY_OWN"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    assert main([*mine, "--suite", "other"]) == 2
    assert "endpoint.api_key_env = 'HOME_LETTERS'" in capsys.readouterr().err
    assert len(server.asked) == 2 * attacked


@pytest.mark.usefixtures("here")
def test_set_vouches_for_the_field_that_it_names_alone(root: Path, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "evaluation" / "default"
    altered(folder / "replay.json", lambda tree: tree["recipe"].update(judge=reader("http://stored.invalid/v1")))
    own = ["evaluate", "--replay", str(folder), "--suite", "s", "--set", f"judge.reader.endpoint.url={server.url}"]
    assert main(own) == 2
    line = capsys.readouterr().err
    assert "api_key_env" in line
    assert "endpoint.url" not in line
    assert server.asked == []
    assert main([*own, "--set", "judge.reader.endpoint.api_key_env=null"]) == 0
    assert {asked["authorization"] for asked in server.asked} == {None}


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(suite="../../../elsewhere/s"),
        lambda tree: tree.update(suite="/elsewhere/s"),
        lambda tree: tree.update(models={"../base": "none"}),
        lambda tree: tree["recipe"].update(name="../../elsewhere"),
    ],
)
@pytest.mark.usefixtures("here")
def test_names_of_a_stored_replay_stay_in_its_folder(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change
) -> None:
    folder = root / "evaluation" / "default"
    altered(folder / "replay.json", change)
    before = contents(tmp_path)
    assert main(["evaluate", "--replay", str(folder), "--judge", "refusal-anywhere"]) == 2
    assert "restore that file" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("here")
def test_a_suite_of_the_command_line_is_a_name_too(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(tmp_path)
    replay = ["--replay", str(root), "--judge", "refusal-anywhere"]
    compare = ["--run-dir", str(root), "--models", "base=base"]
    for suite in ("../up", str(tmp_path / "absolute"), ".hidden", "a\nb", ""):
        assert main(["evaluate", *replay, "--suite", suite]) == 2
        assert main(["evaluate", *compare, "--suite", suite]) == 2
        assert capsys.readouterr().err.count("a name begins with a letter or digit") == 2
        assert contents(tmp_path) == before


@pytest.mark.usefixtures("here")
def test_a_replay_goes_beside_its_folder_wherever_the_person_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "evaluation" / "default")
    assert main(["evaluate", "--replay", ".", "--judge", "refusal-anywhere"]) == 0
    assert has_manifest(str(root / "evaluation" / "default-refusal-anywhere"))


NOT_HERS: dict[str, tuple[str, Change, str]] = {
    "attacker": (
        "evaluate",
        lambda recipe: recipe["evaluation"].update(attacker=reader("http://192.0.2.1/v1")["reader"]),
        "evaluation.attacker.endpoint.url",
    ),
    "task code": (
        "evaluate",
        lambda recipe: recipe["evaluation"]["utility"].update(include_path="/elsewhere/tasks"),
        "evaluation.utility.include_path = '/elsewhere/tasks' (folder with code)",
    ),
    "attack": (
        "evaluate",
        lambda recipe: recipe["evaluation"].update(attacks=["direct", "theirs.attack:Some"]),
        "evaluation.attacks = 'theirs.attack:Some' (class to import)",
    ),
    "attack, before anything is checked": (
        "generate",
        lambda recipe: recipe["evaluation"].update(attacks=["theirs.attack:Some"]),
        "evaluation.attacks = 'theirs.attack:Some' (class to import)",
    ),
    "templates": (
        "evaluate",
        lambda recipe: recipe["evaluation"].update(templates_path="s3://bucket/t.csv?endpoint_override=192.0.2.1"),
        "evaluation.templates_path",
    ),
    "judge's prompt": (
        "evaluate",
        lambda recipe: recipe.update(judge=reader("http://192.0.2.1/v1", prompt_path="/elsewhere/p.txt")),
        "judge.prompt_path",
    ),
    "tracker": ("train", lambda recipe: recipe["tracking"].update(wandb="theirs"), "tracking.wandb"),
    "tracking server": (
        "train",
        lambda recipe: recipe["tracking"].update(mlflow="e", mlflow_uri="http://192.0.2.1:5000"),
        "tracking.mlflow_uri",
    ),
    "rewrites": (
        "select",
        lambda recipe: recipe["selection"].update(source="mixture", rewrites="/elsewhere/r.csv"),
        "selection.rewrites",
    ),
    "behaviors": ("generate", lambda recipe: recipe["behaviors"].update(path="/elsewhere/b.csv"), "behaviors.path"),
}


@pytest.mark.parametrize(("verb", "change", "field"), NOT_HERS.values(), ids=NOT_HERS)
def test_every_stage_asks_before_a_stored_recipe_leads_elsewhere(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, change: Change, field: str
) -> None:
    altered(root / "run.json", lambda tree: change(tree["recipe"]))
    before = contents(tmp_path)
    assert main([verb, "--run-dir", str(root), "--resume"]) == 2
    message = capsys.readouterr().err
    assert field in message
    assert "name your own recipe on the command line, or add --trust-run-dir" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("verb", "change", "field"), NOT_HERS.values(), ids=NOT_HERS)
def test_looking_at_a_run_asks_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, change: Change, field: str
) -> None:
    altered(root / "run.json", lambda tree: change(tree["recipe"]))
    assert main(["status", str(root)]) == 0
    assert main(["report", "--run-dir", str(root), "--out", str(tmp_path / "page")]) == 0
    assert main(["curves", str(root), "--out", str(tmp_path / "curves")]) == 0
    assert "--trust-run-dir" not in capsys.readouterr().err


def test_a_run_of_ones_own_goes_on_without_a_word(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its retain set, a file of hers, was read when it was made; models are not asked about."""
    run: list[Any] = []
    monkeypatch.setattr("dat_ray.pipeline.stages.run_stages", lambda recipe, run_dir, stages, behaviors: run.append(stages))
    for verb in ("train", "evaluate"):
        assert main([verb, "--run-dir", str(root)]) == 0
    assert run == [("train",), ("evaluate",)]
    shutil.rmtree(root / "training_set" / "round-0" / "retain")
    assert main(["train", "--run-dir", str(root)]) == 2
    assert main(["train", "--run-dir", str(root), "--trust-run-dir"]) == 0
    # The recipe that she names is hers.
    recipe = root.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(json.loads((root / "run.json").read_text())["recipe"]))
    assert main(["train", str(recipe), "--run-dir", str(root)]) == 0


def test_a_stored_fingerprint_names_no_other_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered(root / "run.json", lambda tree: tree.update(fingerprint="../../../../elsewhere"))
    assert main(["train", "--run-dir", str(root)]) == 2
    assert "its fingerprint is none" in capsys.readouterr().err


def test_a_stored_recipe_opens_no_template(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private = tmp_path / "private.j2"
    private.write_text("{{ password }}: hunter-two")
    altered(root / "run.json", lambda tree: tree["recipe"]["target"].update(chat_template=str(private)))
    altered(root / "evaluation/default/replay.json", lambda tree: tree["recipe"]["target"].update(chat_template=str(private)))
    for command in (["status", str(root)], ["evaluate", "--replay", str(root), "--judge", "refusal-anywhere"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "names a file, and a stored recipe" in message
        assert "hunter-two" not in message
    # A recipe of one's own may name it.
    tree = json.loads((STORED / "run.json").read_text())["recipe"]
    tree["target"]["chat_template"] = str(private)
    assert Recipe.model_validate(tree).target.chat_template == private.read_text()


@pytest.mark.parametrize(
    "link", ["report", "evaluation/extra", "logs/failure.txt", "run.json.partial", "training/round-0/tensorboard"]
)
@pytest.mark.parametrize("verb", ["report", "evaluate", "export"])
def test_a_link_out_of_the_directory_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str, verb: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(tmp_path / "elsewhere", root / link)
    command = [verb, str(root), "--out", str(tmp_path / "out")] if verb == "export" else [verb, "--run-dir", str(root)]
    assert main(command) == 2
    assert f"a symbolic link that leads out of it, '{link}'" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_within_the_directory_and_to_it_are_fine(root: Path, tmp_path: Path) -> None:
    os.symlink(root / "training", root / "latest")
    os.symlink(root / "loop", root / "loop")
    os.symlink(root, tmp_path / "shortcut")
    assert main(["report", "--run-dir", str(tmp_path / "shortcut"), "--out", str(tmp_path / "page")]) == 0
    refuse_links(str(tmp_path / "shortcut"))
    refuse_links("s3://bucket/run")


def test_a_link_is_refused_before_a_record_is_written(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    (tmp_path / "run").mkdir()
    os.symlink(private, tmp_path / "run" / "run.json.partial")
    with pytest.raises(InputError, match=r"run\.json\.partial"):
        open_run(str(tmp_path / "run"), load_recipe("demo"), resume=True)
    assert private.read_text() == "mine"
