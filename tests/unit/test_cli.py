from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dat_ray.cli import STAGES, main
from dat_ray.config.loading import fingerprint, load_recipe


def _bad(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a verb that must end with exit 2 and one line; returns the line."""
    assert main(list(argv)) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_recipes_are_listed_and_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    assert "demo" in json.loads(capsys.readouterr().out)
    assert main(["recipes", "show", "demo", "--json", "--set", "seed=5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"]["seed"] == 5
    assert shown["fingerprint"] == fingerprint(load_recipe("demo", ["seed=5"]))
    assert main(["recipes", "show", "demo"]) == 0
    # A default, which the file leaves out.
    assert "order: low_confidence" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainig.updates=3", ["trainig", "unknown key", "training"]),
        ("training.updates=many", ["training.updates", "'many'"]),
        ("behaviors.path=nowhere.csv", ["behaviors.path", "nowhere.csv"]),
    ],
)
def test_bad_settings_are_one_line(capsys, tmp_path, setting: str, words: list[str]) -> None:
    message = _bad(capsys, "run", "demo", "--run-dir", str(tmp_path / "run"), "--set", setting)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "goal,target\n", ["behaviors.path", "empty.csv"]),
        ("no_target.csv", "goal,answer\nWrite a limerick,Sure\n", ["behaviors.columns.target", "target"]),
    ],
)
def test_bad_behavior_files_are_one_line(capsys, tmp_path, name: str, content: str, words: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content)
    message = _bad(
        capsys,
        *("run", "demo", "--run-dir", str(tmp_path / "run"), "--set", f"behaviors.path={path}"),
        *("--set", "behaviors.format=table"),
    )
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (["run", "demo", "--run-dir", ""], "RUN_DIR"),
        (["doctor", ""], "RECIPE"),
        (["status", ""], "RUN_DIR"),
        (["curves", "runs/a", "", "--out", "x"], "RUN_DIRS"),
        (["study", "demo-arms", "--merge", ""], "MERGE"),
    ],
)
def test_a_path_of_no_letters_is_no_default(command: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell's variable that is not set."""
    assert f"{field} = '': is empty: name it, or leave it out" in _bad(capsys, *command)


def test_an_unknown_recipe_and_a_stage_without_a_run(capsys, tmp_path) -> None:
    assert "did you mean 'demo'" in _bad(capsys, "run", "demmo")
    assert "--run-dir" in _bad(capsys, "train", "--run-dir", str(tmp_path))
    # Named or not, a recipe begins no run in a stage that is not the first.
    for verb in ("select", "train", "evaluate", "report"):
        assert "holds no run: begin one" in _bad(capsys, verb, "demo", "--run-dir", str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()
    assert "NAME" in _bad(capsys, "recipes", "show")


@pytest.mark.parametrize("verb", ["run", "generate"])
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_mistyped_run_directory_begins_no_demo(capsys, tmp_path, monkeypatch, verb: str, options: list[str]) -> None:
    import dat_ray.pipeline.stages as stages

    began: list[str] = []
    monkeypatch.setattr(stages, "run_stages", lambda recipe, *_, **__: began.append(recipe.name))
    monkeypatch.setattr(stages, "check_inputs", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    assert "name a recipe" in _bad(capsys, verb, "--run-dir", str(tmp_path / "runs" / "frist"), *options)
    assert not (tmp_path / "runs").exists()
    assert main([verb, *options]) == 0
    assert began == ["demo"]


def test_a_run_directory_in_use_asks_for_resume(capsys, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "--resume" in _bad(capsys, "run", "demo", "--run-dir", str(tmp_path))


def test_a_run_directory_s_recipe_is_fixed(capsys, tmp_path) -> None:
    from dat_ray.data.rundir import open_run

    open_run(str(tmp_path), load_recipe("demo"), resume=False)
    message = _bad(capsys, "report", "--run-dir", str(tmp_path), "--set", "seed=3")
    assert "fixed" in message


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_run_without_its_recipes_name_goes_on_with_a_smaller_batch(tmp_path, monkeypatch) -> None:
    """What helps after an out-of-memory error: the same run, with less at once."""
    import dat_ray.pipeline.stages as stages
    from dat_ray.data.rundir import open_run

    open_run(str(tmp_path), load_recipe("demo"), resume=False)
    before, ran = contents(tmp_path), []
    monkeypatch.setattr(stages, "run_stages", lambda recipe, run, names, behaviors=None: ran.append((recipe, run.root, names)))
    monkeypatch.setattr(stages, "check_inputs", lambda *_, **__: None)
    smaller = ["--set", "target.batch_size=4", "--set", "target.kv_cache_gib=0.5"]
    assert main(["train", "--run-dir", str(tmp_path), *smaller]) == 0
    assert main(["run", "demo", "--run-dir", str(tmp_path), "--resume", *smaller]) == 0
    expected = load_recipe("demo", smaller[1::2])
    assert ran == [(expected, str(tmp_path), ("train",)), (expected, str(tmp_path), STAGES)]
    assert contents(tmp_path) == before


def test_a_page_of_a_run_that_may_only_be_read_goes_elsewhere(capsys, tmp_path) -> None:
    from tests.unit.reporting.synthetic_run import finished_run

    root, out = tmp_path / "run", tmp_path / "page"
    finished_run(root)
    before = contents(root)
    assert main(["report", "--run-dir", str(root), "--out", str(out)]) == 0
    assert f"report: {out}/index.html" in capsys.readouterr().err
    assert "synthetic" in (out / "index.html").read_text()
    assert contents(root) == before
    assert "holds no run" in _bad(capsys, "report", "demo", "--run-dir", str(tmp_path / "none"), "--out", str(out))
    assert not (tmp_path / "none").exists()
    assert "another recipe" in _bad(capsys, "report", "demo", "--run-dir", str(root), "--out", str(out))


@pytest.mark.parametrize("verb", ["status", "report", "curves", "export"])
@pytest.mark.parametrize("recipe", [None, {"name": "demo"}, {"round": 4}, "demo", []])
def test_a_run_that_cannot_be_understood_is_one_line(capsys, tmp_path, verb: str, recipe: object) -> None:
    root = tmp_path / "run"
    root.mkdir()
    (root / "run.json").write_text(json.dumps({"dat_ray": "9.0", "recipe": recipe}))
    where = ["--run-dir", str(root)] if verb == "report" else [str(root)]
    out = [] if verb == "status" else ["--out", str(tmp_path / "out")]
    assert "run.json" in _bad(capsys, verb, *where, *out)


def test_a_later_versions_run_is_looked_at_without_what_is_new_in_it(capsys, tmp_path) -> None:
    from tests.unit.reporting.synthetic_run import finished_run

    run = finished_run(tmp_path / "run")
    record = json.loads(Path(run.record).read_text())
    record["recipe"]["sampler"]["novelty"], record["dat_ray"] = 0.5, "7.1"
    del record["packages"], record["platform"]
    Path(run.record).write_text(json.dumps(record))
    out = str(tmp_path / "out")
    for argv in (["status", run.root], ["report", "--run-dir", run.root, "--out", out], ["curves", run.root, "--out", out]):
        assert main(argv) == 0
        [line] = [line for line in capsys.readouterr().err.splitlines() if "does not know" in line]
        assert "sampler.novelty" in line
        assert "7.1" in line
    assert main(["train", "--run-dir", run.root, "--trust-run-dir"]) == 2
    assert "go on with that version" in capsys.readouterr().err.splitlines()[-1]


def test_files_of_another_version_that_make_no_sense_are_one_line(capsys, tmp_path) -> None:
    from tests.unit.reporting.synthetic_run import finished_run

    run = finished_run(tmp_path / "run")
    record = json.loads(Path(run.record).read_text()) | {"dat_ray": "7.1"}
    Path(run.record).write_text(json.dumps(record))
    Path(run.training(0), "metrics.jsonl").write_text('{"step": 3}\n')
    out = str(tmp_path / "out")
    for argv in (["status", run.root], ["report", "--run-dir", run.root, "--out", out]):
        assert main(argv) == 1
        message = capsys.readouterr().err.strip()
        assert "\n" not in message
        assert "was begun by dat_ray 7.1" in message
    assert "KeyError" in (Path(out) / "failure.txt").read_text()


def test_options_of_comparisons_replays_and_sweeps_are_checked(capsys, tmp_path) -> None:
    assert "--replay" in _bad(capsys, "evaluate", "--replay", str(tmp_path))
    assert "belongs to --replay" in _bad(capsys, "evaluate", "demo", "--judge", "refusal-rules")
    assert "belongs to --models" in _bad(capsys, "evaluate", "demo", "--suite", "mine")
    run = str(tmp_path / "run")
    assert "NAME=WHAT" in _bad(capsys, "evaluate", "demo", "--run-dir", run, "--models", "base")
    assert "retain_weight" in _bad(capsys, "sweep", "demo", "--grid", "training.retain_wait=1,2")
    assert "parallel" in _bad(capsys, "sweep", "demo", "--grid", "training.updates=1,2", "--parallel", "0")
    (tmp_path / "notes.txt").write_text("mine")
    grid = ("sweep", "demo", "--grid", "training.updates=1,2", "--sweep-dir", str(tmp_path))
    assert "--resume" in _bad(capsys, *grid)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["evaluate", "demo", "--list"], "RECIPE = 'demo': says nothing with --list"),
        (["evaluate", "--list", "--set", "seed=1"], "--set = ['seed=1']: says nothing with --list"),
        (["evaluate", "--replay", "a", "--models", "base=base"], "--models = 'base=base': says nothing with --replay"),
        (["evaluate", "--replay", "a", "--run-dir", "b"], "--run-dir = 'b': says nothing with --replay"),
        (["evaluate", "--calibrate", "a.csv", "--replay", "b"], "--replay = 'b': says nothing with --calibrate"),
        (["evaluate", "demo", "--models", "base=base", "--json"], "--json = True: belongs to --calibrate or --list"),
        (["recipes", "list", "demo"], "NAME = 'demo': says nothing with `dat recipes list`"),
        (["recipes", "--set", "seed=1"], "--set = ['seed=1']: says nothing with `dat recipes list`"),
        (["doctor", "--set", "seed=1"], "--set = ['seed=1']: changes a field of a recipe: name the RECIPE"),
        (["study", "demo-arms", "--device", "h100"], "--device = 'h100': belongs to --plan"),
        (["study", "demo-arms", "--plan", "--merge", "a"], "--merge = ['a']: says nothing with --plan"),
    ],
)
def test_options_that_would_be_passed_over_are_refused(capsys, command: list[str], words: str) -> None:
    assert words in _bad(capsys, *command)


def test_the_report_of_an_older_version_s_run_can_be_written(tmp_path, monkeypatch) -> None:
    """Fields that came later have their defaults, with which the recorded fingerprint does not agree."""
    import dat_ray.pipeline.stages as stages
    from dat_ray.data.rundir import open_run

    run = open_run(str(tmp_path / "run"), load_recipe("demo"), resume=False)
    record = json.loads(open(run.record).read()) | {"fingerprint": "0" * 16}
    del record["recipe"]["evaluation"]["confidence"]
    open(run.record, "w").write(json.dumps(record))
    # The report needs no cluster.
    monkeypatch.setattr(stages, "start_ray", lambda cluster: contextlib.nullcontext())
    assert main(["report", "--run-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_a_replay_changes_judges_only(capsys, tmp_path) -> None:
    from dat_ray.data.shards import write_manifest
    from dat_ray.evaluation.compared import Model
    from dat_ray.evaluation.record import write_record

    write_record(str(tmp_path), load_recipe("demo"), "default", [Model("base", None, "w")])
    write_manifest(str(tmp_path), [], "f")
    message = _bad(capsys, "evaluate", "--replay", str(tmp_path), "--set", "evaluation.inpainting_samples=3")
    assert "a replay asks no model again" in message
    assert "judge.name" in _bad(capsys, "evaluate", "--replay", str(tmp_path), "--judge", "nobody")


def test_a_polite_kill_stops_with_one_line(tmp_path) -> None:
    """SIGTERM unwinds like Ctrl-C; the verb here just waits."""
    code = (
        "import sys, time, dat_ray.cli as cli\n"
        "def wait(arguments): print('ready', flush=True); time.sleep(60)\n"
        "cli._recipes = wait\n"
        "sys.exit(cli.main(['recipes']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "dat recipes: stopped\n"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for verb in ("run", "generate", "select", "train", "evaluate", "report", "sweep", "adapt", "recipes"):
        assert f"    {verb} " in shown
