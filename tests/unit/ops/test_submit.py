from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dat_ray.cli import main
from dat_ray.config.loading import fingerprint, load_recipe, recipe_text
from dat_ray.errors import DatError, InputError
from dat_ray.ops import submit
from dat_ray.ops.package import Package, pack
from dat_ray.ops.submit import Submission, WorkingDir, follow, job_id, prepare, running_job


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    for name in ("jobs/generate.py", "data/a.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x" * 100)
    (root / "recipe.yaml").write_text(recipe_text("demo"))
    return root


def ready(folder: Path, **options: Any) -> Submission:
    given: dict[str, Any] = {"run_dir": "/shared/runs/a", "settings": [], "resume": True} | options
    along = WorkingDir(str(given.pop("working_dir", folder)), given.pop("include", ["."]), given.pop("exclude", ()))
    given["working_dir"] = along
    return prepare(given.pop("stage", "generate"), given.pop("recipe", str(folder / "recipe.yaml")), **given)


def test_the_job_says_what_it_is(folder: Path) -> None:
    job = ready(folder, settings=["seed=4"])
    assert shlex.split(job.entrypoint) == [
        *("python", "-m", "dat_ray.cli", "generate", "recipe.yaml", "--run-dir", "/shared/runs/a", "--resume", "--set", "seed=4"),
    ]
    assert job.metadata == {
        "stage": "generate",
        "run": "/shared/runs/a",
        "fingerprint": fingerprint(load_recipe("demo", ["seed=4"])),
    }
    package = pack(job.listing)
    words = shlex.split(job.plain_line("http://localhost:8265", package))
    assert words[words.index("--") + 1 :] == shlex.split(job.entrypoint)
    assert json.loads(words[words.index("--metadata-json") + 1]) == job.metadata
    assert words[words.index("--working-dir") + 1] == package.path


@pytest.mark.parametrize(("stage", "script"), [("run", "pipeline"), ("evaluate", "evaluate")])
def test_a_script_of_the_user_s_own_does_not_run_in_a_stage_s_place(folder: Path, stage: str, script: str) -> None:
    (folder / "jobs" / f"{script}.py").write_text("print('mine')\n")
    assert ready(folder, stage=stage).entrypoint.startswith(f"python -m dat_ray.cli {stage} recipe.yaml")
    # In a checkout of the package they are its own.
    (folder / "dat_ray").mkdir()
    (folder / "dat_ray" / "cli.py").write_text("")
    assert ready(folder, stage=stage).entrypoint.startswith(f"python jobs/{script}.py recipe.yaml")


def test_the_id_follows_from_stage_and_run(folder: Path) -> None:
    assert (
        ready(folder).submission_id
        == ready(folder, run_dir="/shared/runs/a/").submission_id
        == job_id("generate", "/shared/runs/a")
    )
    assert len({job_id("generate", "/a"), job_id("train", "/a"), job_id("generate", "/b"), job_id("generate", "/a", 2)}) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"run_dir": None}, "--run-dir"),
        ({"run_dir": "runs/a"}, "give an absolute path on shared storage"),
        ({"recipe": "../outside.yaml"}, "outside"),
        ({"exclude": ["*.yaml"]}, "leaves out the recipe itself"),
        ({"recipe": "demmo"}, "did you mean 'demo'"),
        ({"settings": ["behaviors.path=elsewhere.csv"]}, "behaviors.path = 'elsewhere.csv': is not in the folder"),
        ({"settings": ["training.updates=many"]}, "training.updates"),
    ],
)
def test_bad_input_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str) -> None:
    (folder.parent / "outside.yaml").write_text(recipe_text("demo"))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as error:
        ready(folder, **options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        (["encoder.model=encoders/mine"], "encoders/mine"),
        (["target.model=mine"], "mine"),
        (["target.model=./models/mine"], "models/mine"),
        (["sampler.model=samplers/mine/sampler"], None),
        (["evaluation.attacker={model: ../elsewhere/model, max_new_tokens: 9}"], None),
    ],
)
def test_a_folder_of_a_model_goes_along_or_is_named(folder: Path, settings: list[str], there: str | None) -> None:
    assert ready(folder, settings=["target.model=some-org/model", "encoder.model=model"]), "names of a hub"
    if there is not None:
        (folder / there).mkdir(parents=True)
        (folder / there / "config.json").write_text("{}")
        assert ready(folder, settings=settings), "by --include"
    field = settings[0].partition("=")[0]
    with pytest.raises(InputError, match=rf"^{field}\S* = .* is not in the folder that goes along .*shared storage.*--include"):
        ready(folder, settings=settings, include=["data", "recipe.yaml"])


def test_a_server_s_name_for_a_model_is_no_folder(folder: Path) -> None:
    endpoint = "{backend: endpoint, model: team/large/v2, endpoint: {url: 'http://127.0.0.1:9/v1'}}"
    assert ready(folder, settings=[f"evaluation.attacker={endpoint}"])


def test_parts_of_a_folder_may_be_named_by_a_pattern(folder: Path) -> None:
    (folder / "goals").mkdir()
    (folder / "goals" / "train-0.csv").write_text("goal,target\n")
    assert ready(folder, settings=["behaviors.path=goals/train-*"]).recipe.behaviors.path == "goals/train-*"
    with pytest.raises(InputError, match="is not in the folder that goes along"):
        ready(folder, settings=["behaviors.path=goals/test-*"])
    with pytest.raises(InputError, match=r"--include goals/train-0.csv"):
        ready(folder, include=["jobs"], settings=["behaviors.path=goals/train-0.csv"])
    with pytest.raises(InputError, match=r"selection.rewrites = 'rewrites.csv': is not in the folder"):
        ready(folder, settings=["selection.source=mixture", "selection.rewrites=rewrites.csv"])
    for elsewhere in ("public:advbench", "hf:org/set", "s3://bucket/set.csv"):
        assert ready(folder, settings=[f"behaviors.path={elsewhere}"]), "at a place of its own"


PACKAGE = Package("job.zip", 1, {"a": 1}, ())


class Client:
    """Ray's job client, with the answers of a cluster."""

    def __init__(self, *replies: Any) -> None:
        self.replies, self.sent = list(replies), 0
        self.info: Any = None

    def submit_job(self, **_: Any) -> str:
        self.sent += 1
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def list_jobs(self) -> list[Any]:
        return self.replies

    async def tail_job_logs(self, job: str):
        for text in ("one\n", "two\n"):
            yield text
            if self.replies:
                raise self.replies.pop(0)

    def get_job_status(self, job: str) -> str:
        return "SUCCEEDED" if not self.replies else "RUNNING"

    def get_job_info(self, job: str) -> Any:
        return self.info


def test_an_agent_that_is_late_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SECONDS_BETWEEN_TRIES", 0.01)
    late = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")
    client = Client(late, late, "job-1")
    assert submit.submit(client, ready(folder), PACKAGE) == "job-1"
    assert client.sent == 3
    monkeypatch.setattr(submit, "SECONDS_FOR_AN_AGENT", 0.05)
    with pytest.raises(DatError, match="No available agent"):
        submit.submit(Client(*[late] * 50), ready(folder), PACKAGE)


def test_a_job_that_is_there_is_named(folder: Path) -> None:
    taken = RuntimeError("ValueError: Job with submission_id x already exists. Please use a different submission_id.")
    job = ready(folder)
    with pytest.raises(DatError, match=rf"job {job.submission_id} works on this run directory already: follow it with"):
        submit.submit(Client(taken), job, PACKAGE)


def test_ended_jobs_count_and_running_ones_block(folder: Path) -> None:
    def job(status: str, stage: str, run: str = "/shared/runs/a") -> Any:
        return SimpleNamespace(status=status, metadata={"stage": stage, "run": run}, submission_id=f"{stage}-{status}")

    ended = [
        job("FAILED", "generate"),
        job("STOPPED", "generate"),
        job("SUCCEEDED", "train"),
        job("RUNNING", "generate", "/other"),
    ]
    assert running_job(Client(*ended), ready(folder)) == (None, 2)
    # Another stage that writes the same directory blocks as well; a job of someone else does not.
    client = Client(*ended, job("PENDING", "run"), SimpleNamespace(status="RUNNING", metadata=None))
    active, _ = running_job(client, ready(folder))
    assert active is not None
    assert active.submission_id == "run-PENDING"


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", -15, 1)]
)
def test_the_exit_status_is_the_job_s(status: str, code: int | None, expected: int, capsys: pytest.CaptureFixture[str]) -> None:
    client = Client()
    client.info = SimpleNamespace(status=status, driver_exit_code=code, message="why")
    assert follow(client, "job-1") == expected
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_broken_connection_repeats_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(submit, "SECONDS_BETWEEN_TRIES", 0.01)
    client = Client(RuntimeError("closed"), OSError("reset"))
    client.info = SimpleNamespace(status="SUCCEEDED", driver_exit_code=0, message="")
    assert follow(client, "job-1") == 0
    assert capsys.readouterr().out == "one\ntwo\n"


TOKEN = "hf_" + "Ab3" * 12


@pytest.mark.parametrize(
    "options",
    [
        {"settings": ["target.system_prompt=my-very-own-passphrase"]},
        {"settings": [f"target.system_prompt={TOKEN}"]},
        {"settings": ["tracking.mlflow_uri=https://me:hunter2hunter2@tracker.example"]},
        {"run_dir": "s3://key:hunter2hunter2@bucket/run"},
        {"recipe": "with-token.yaml"},
        {"recipe": "with-passphrase.yaml"},
    ],
)
def test_a_secret_is_refused_before_anything_is_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VAULT_PASSWORD", "my-very-own-passphrase")
    monkeypatch.chdir(folder)
    (folder / "with-token.yaml").write_text(recipe_text("demo") + f"# mine: {TOKEN}\n")
    (folder / "with-passphrase.yaml").write_text(recipe_text("demo") + "# my-very-own-passphrase\n")
    monkeypatch.setattr(submit, "connect", lambda address: pytest.fail("connects"))
    given = {"recipe": "recipe.yaml", "run_dir": "/shared/r", "settings": []} | options
    settings = [word for setting in given["settings"] for word in ("--set", setting)]
    where = ["--address", "http://127.0.0.1:9", "--run-dir", given["run_dir"], "--include", "."]
    assert main(["submit", "generate", given["recipe"], *where, *settings]) == 2
    message = capsys.readouterr().err
    assert "name the environment variable" in message
    for secret in ("my-very-own-passphrase", TOKEN, "hunter2"):
        assert secret not in message
    # With the name of the variable there is nothing to refuse.
    assert ready(folder, settings=["target.system_prompt=VAULT_PASSWORD"])


def test_a_dry_run_lists_everything_and_sends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "connect", lambda address: pytest.fail("connects"))
    command = ["submit", "generate", "demo", "--address", "http://127.0.0.1:9", "--run-dir", "/shared/r"]
    monkeypatch.chdir(folder)
    assert main([*command, "--include", "jobs", "--include", "data/*.csv", "--dry-run"]) == 0
    printed = capsys.readouterr().err
    assert "by --include: 2 files, 0.0 MiB; the largest: data/a.csv (0.0 MiB), jobs/generate.py (0.0 MiB)" in printed
    assert "100 B  'data/a.csv'" in printed
    assert "recipe.yaml" not in printed
    assert main([*command, "--dry-run"]) == 2
    assert "Name it with --include" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://localhost:x", "is no address"),
        ("http://localhost:99999", "is no address"),
        ("http://", "names no host"),
        ("", "names no host"),
        ("my cluster", "names no host"),
        ("ray://head:10001", "takes no jobs"),
    ],
)
def test_what_can_be_no_dashboard_is_refused_before_anything_is_packed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str, words: str
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(submit, "pack", lambda listing: pytest.fail("packs"))
    command = ["submit", "generate", "demo", "--address", address, "--run-dir", "/shared/r", "--include", ".", "--dry-run"]
    assert main(command) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"dat submit: --address = {address!r}")
    assert words in printed
    assert "http://localhost:8265" in printed


@pytest.mark.parametrize(
    "address", ["localhost:8265", "https://ray.example/dash", "http://[::1]:8265", "anyscale://cluster_of_mine"]
)
def test_an_address_that_ray_can_take_is_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.chdir(folder)
    command = ["submit", "generate", "demo", "--address", address, "--run-dir", "/shared/r", "--include", "jobs", "--print"]
    assert main(command) == 0
    assert f"--address {shlex.quote(address)} " in capsys.readouterr().out
