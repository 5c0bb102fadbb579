from __future__ import annotations

import json
from pathlib import Path

import pytest

from dat_ray.config.loading import load_recipe
from dat_ray.pipeline import stages


def test_retain_rows_that_are_left_out_are_counted_on_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "check_models", lambda recipe, *, trains: None)
    turns = [{"role": "user", "content": "Name a bird"}, {"role": "assistant", "content": "A robin."}]
    chats = [turns, turns[:1], [], [turns[0], {"role": "assistant", "content": ""}]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    stages.check_inputs(load_recipe("demo", [f"training.retain.path={path}"]), trains=False)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "retain: 3 rows left out; 2: each holds no user message that the assistant answers next; "
        "1: each holds a message that is empty or more than text"
    )
