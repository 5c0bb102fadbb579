from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path

import pytest

import dat_ray.progress as progress
from dat_ray.data.rundir import RunDir
from dat_ray.progress import Progress, stage_line
from dat_ray.runlog import RunLog
from dat_ray.secrets import BLANK, looks_secret, redact
from tests.unit.test_progress import until


def events(run: RunDir) -> list[dict]:
    [path] = Path(run.logs).glob("events-*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_holds_lines_progress_records_and_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.05)
    run = RunDir(str(tmp_path))
    with RunLog(run):
        stage_line("  [1/1] generate")
        with Progress("generate", 4) as shown:
            shown.update(3, "running")
            until(lambda: "3/4" in capsys.readouterr().err)
        logging.getLogger("dat_ray.models").warning("waiting for %s", "a lock")
    stage_line("not of this run")
    found = events(run)
    assert [event["event"] for event in (found[0], found[-1])] == ["start", "end"]
    assert {"event": "line", "text": "[1/1] generate"}.items() <= found[1].items()
    beats = [event for event in found if event["event"] == "progress"]
    assert beats[0]["state"] == "running"
    expected = {"state": "done", "stage": "generate", "done": 3, "total": 4, "unit": "rows", "note": "running"}
    assert expected.items() <= beats[-1].items()
    assert any(event.get("text") == "waiting for a lock" and event["level"] == "WARNING" for event in found)
    assert not any("not of this run" in str(event) for event in found)
    assert all(later["time"] >= sooner["time"] for sooner, later in pairwise(found))


def test_a_failure_is_in_the_log_and_a_secret_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    run = RunDir(str(tmp_path))
    with pytest.raises(ValueError), RunLog(run):
        raise ValueError("401 for sk-0123456789abcdef at https://me:hunter22@host/v1")
    text = next(Path(run.logs).glob("events-*.jsonl")).read_text()
    assert "sk-0123456789abcdef" not in text
    assert "hunter22" not in text
    failure = next(event for event in events(run) if event["event"] == "failure")
    assert failure["text"] == f"401 for {BLANK} at https://{BLANK}@host/v1"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "api_key", "WANDB_API_KEY"]
)
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name", ["PATH", "api_key_env", "RAY_AUTH_TOKEN_PATH", "KEYBOARD", "max_tokens", "prompt_tokens", "TOKENIZERS_PARALLELISM"]
)
def test_names_of_other_things(name: str) -> None:
    assert not looks_secret(name)


def test_a_log_that_cannot_be_written_does_not_hide_the_run_s_own_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="the stage's own"), RunLog(RunDir(str(tmp_path))):
        raise ValueError("the stage's own")


def test_short_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "rows")
    assert redact("4 rows") == "4 rows"
