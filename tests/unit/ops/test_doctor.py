from __future__ import annotations

import json
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from dat_ray.cli import main
from dat_ray.config.loading import load_recipe
from dat_ray.config.models import EndpointConfig, TargetConfig
from dat_ray.data.rundir import open_run
from dat_ray.models.chat import ChatFormat
from dat_ray.ops import doctor
from dat_ray.ops import model_checks as models
from dat_ray.ops.doctor import diagnose
from tests.plain_demo import PLAIN
from tests.unit.models.tiny import make_model, make_tokenizer, save_folder

Usage = namedtuple("Usage", "total used free")
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room, whatever else is on this one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    memory = psutil.virtual_memory()._replace(total=2**36, available=2**36)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**39, 2**39))


def failed(*arguments: Any, **options: Any) -> dict[str, str]:
    return {check.name: check.detail for check in diagnose(*arguments, **options) if not check.ok}


def test_json_has_the_published_shape(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--json", "--run-dir", str(tmp_path / "new")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"ok", "checks"}
    assert report["ok"] is True
    assert all(set(check) == {"name", "ok", "detail", "remedy"} for check in report["checks"])
    versions = next(check for check in report["checks"] if check["name"] == "versions")
    assert "ray 2.60.0" in versions["detail"]
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_machine_that_is_too_small_fails_with_exit_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["doctor", "demo", "--run-dir", str(tmp_path), "--set", "cluster.local_cpus=2"]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "FAIL generate: all pools together: ask for 4.2 CPU (2 CPU of it for files and for a resume)" in shown
    assert "-> lower the pools in `cluster`" in shown
    assert "1 of " in shown.splitlines()[-1]


@pytest.mark.slow
def test_a_wrong_version_a_full_disk_and_no_memory_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = dict(doctor._installed()) | {"ray": "2.61.0"}
    monkeypatch.setattr(doctor, "_installed", lambda: found)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 2**29))
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2**30))
    wrong = failed(load_recipe("demo"), str(tmp_path))
    assert set(wrong) == {"versions", "disk", "memory"}
    assert "ray 2.61.0, tested" in wrong["versions"]
    assert wrong["disk"].startswith("0.5 GiB free")
    assert wrong["memory"].startswith("1.0 GiB free; engines, cache and a resume want about")


def test_inputs_that_are_missing_are_named_all_at_once(tmp_path: Path) -> None:
    settings = ["behaviors.path=nowhere.csv", "training.retain.path=nothing.jsonl", f"target.model={tmp_path}"]
    wrong = failed(load_recipe("demo", settings))
    assert {"behaviors", "retain", "target model"} <= set(wrong)
    assert "nowhere.csv" in wrong["behaviors"]
    assert "has no config.json: give the folder of a whole model" in wrong["target model"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "has no safetensors weights" in failed(load_recipe("demo", settings))["target model"]


def style(*settings: str) -> list[doctor.Check]:
    wanted = ["target.model=nothing/here", "sampler.model=nothing/here", *settings]
    return [one for one in diagnose(load_recipe("demo", wanted)) if one.name == "style"]


def test_prompts_that_their_form_gives_away_are_told(tmp_path: Path) -> None:
    # The form of the builtin set's first 430 prompts differs.
    [found] = style("training.retain.limit=430")
    assert found.ok
    assert found.detail.startswith("form tells 115 goals from 430 retain prompts with an AUC of 0.91")
    [found] = style("training.retain.limit=null")
    assert found.detail.startswith("form tells 115 goals from 672 retain prompts with an AUC of 0.6")
    rows = [{"prompt": f"What is the {word} of it?"} for word in ("name", "color", "point", "price", "size", "age", "use")]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    [found] = style(f"training.retain.path={tmp_path / 'r.jsonl'}")
    assert found.ok
    assert "from 7 retain prompts with an AUC of 1.00" in found.detail
    assert re.search(r'most telling.*"what(?: is)?" \(0 and 1\)', found.detail), found.detail
    assert style("training.retain.limit=4") == []


def training_rows(*settings: str) -> doctor.Check:
    [check] = [one for one in diagnose(load_recipe("demo", [*TINY, *settings])) if one.name == "training rows"]
    return check


@pytest.fixture
def tiny_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny chat model, whole: a doctor looks at its configuration and weights before its rows."""
    tokenizer = make_tokenizer()
    monkeypatch.chdir(tmp_path)
    return Path(save_folder(make_model(len(tokenizer)), tokenizer, tmp_path / "tiny"))


RETAIN = ("training.retain.limit=3", "training.retain_rows=2", "training.retain.max_response_tokens=3")
REFUSAL = "behaviors.default_refusal=I'm sorry, but I can't help with that."
TINY = (*PLAIN, "target.model=tiny", "sampler.model=nothing/here", "behaviors.limit=4", REFUSAL, *RETAIN)
SHORT = ("sampler.prompt_tokens=[1]", "sampler.steps=1")
GOALS = ("selection.source=goals", "training.harmful_rows=4")


def test_what_becomes_of_the_rows_is_told_where_the_tokenizer_is_here(tiny_target: Path) -> None:
    found = training_rows("sampler.prompt_tokens=[20,30,500]", "training.max_tokens=60")
    template = sum(map(len, ChatFormat(make_tokenizer()).segments()))
    assert found.ok
    assert f"sampled prompts of 30 tokens leave about {30 - template} to a response, those of 500 and more none" in found.detail
    assert "4 of 4 refusals cut" in found.detail
    assert "3 retain prompts without a response yet" in found.detail
    found = training_rows("training.max_tokens=2000", *GOALS)
    assert found.detail.startswith("harmful rows: 4, prompts whole; no target cut, no refusal cut; 3 retain prompts")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (("sampler.prompt_tokens=[500,600]",), "prompts of 500 tokens or more and [0-9]+ of the template leave no room for 8"),
        (("training.max_tokens=30", *GOALS), "harmful rows: 4 of 4 left out.* 0 are left and an update needs 4: raise it"),
        (("training.max_tokens=25", *SHORT), "3 of 3 retain prompts leave no room for 3 response tokens"),
    ],
)
def test_a_row_limit_that_leaves_too_few_rows_fails(tiny_target: Path, settings: tuple[str, ...], problem: str) -> None:
    found = training_rows(*settings)
    assert not found.ok
    assert re.search(problem, found.detail), found.detail
    assert found.remedy.startswith("raise training.max_tokens")


def test_a_gpu_recipe_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    wrong = failed(load_recipe("demo", ["cluster.trainer.num_gpus=1"]))
    assert set(wrong) == {"devices", "train: trainer"}


@pytest.mark.slow
def test_a_recipe_against_a_cluster_file(tmp_path: Path) -> None:
    settings = [f"cluster.{role}.subcluster=generation" for role in ("sampler", "target", "judge")]
    settings += ["cluster.sampler.num_gpus=1", "cluster.trainer.subcluster=training", "cluster.trainer.num_gpus=4"]
    path = tmp_path / "aws.yaml"
    path.write_text((REPOSITORY / "cluster/aws.yaml").read_text().replace("EDIT_ME", "mine"))
    assert failed(load_recipe("demo", settings), cluster_file=str(path)) == {}
    settings[-1] = "cluster.trainer.num_gpus=8"
    assert set(failed(load_recipe("demo", settings), cluster_file=str(path))) == {"train: trainer"}
    edits = failed(load_recipe("demo"), cluster_file=str(REPOSITORY / "cluster/aws.yaml"))
    assert set(edits) == {"cluster file edits"}


def test_an_endpoint_is_a_key_and_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = EndpointConfig(url="http://localhost:1/v1", api_key_env="MY_API_KEY")
    target = TargetConfig(model="some-model", backend="endpoint", endpoint=endpoint)
    monkeypatch.delenv("MY_API_KEY", raising=False)
    found = models.engine_check("reader", "judge.reader", target)
    assert not found.ok
    assert "MY_API_KEY is not set" in found.detail
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")
    found = models.engine_check("reader", "judge.reader", target)
    assert found.ok
    assert "sk-0123456789" not in found.detail
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setitem(sys.modules, "socksio", None)
    found = models.engine_check("reader", "judge.reader", target)
    assert not found.ok
    assert "ALL_PROXY" in found.detail


@pytest.mark.slow
def test_another_run_s_directory(tmp_path: Path) -> None:
    open_run(str(tmp_path), load_recipe("demo"), resume=False)
    assert "run directory" in failed(load_recipe("demo", ["seed=5"]), str(tmp_path))
    assert "run directory" not in failed(load_recipe("demo"), str(tmp_path))


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> object:
        from dat_ray.errors import DatError

        raise DatError("RAY_ADDRESS=127.0.0.1:1 does not lead to a cluster")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("dat_ray.raysession.start_ray", refuse)
    assert "does not lead to a cluster" in failed(None)["cluster"]


def test_a_run_directory_says_what_it_holds(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        return {check.name: check.detail for check in diagnose(None, str(path))}["run directory"]

    assert said(tmp_path / "a").endswith(": new")
    (tmp_path / "notes.txt").write_text("mine")
    assert said(tmp_path).endswith("is there, and holds no run yet")
    open_run(str(tmp_path / "run"), load_recipe("demo"), resume=False)
    assert "holds a run: --resume" in said(tmp_path / "run")


def test_a_run_directory_on_no_storage_is_a_failed_check() -> None:
    found = {check.name: check for check in diagnose(None, "ftp://host/runs")}
    assert not found["run directory"].ok
    assert "use a path, s3:// or gs://" in found["run directory"].detail
