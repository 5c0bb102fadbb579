from __future__ import annotations

from pathlib import Path

import pytest

from dat_ray.data.rundir import open_run
from dat_ray.errors import InputError
from dat_ray.evaluation.compared import named_models, own_models
from tests.unit.reporting.synthetic_run import recipe


def adapter(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_every_kind_of_model_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe()
    run = open_run(str(tmp_path / "run"), config, resume=False)
    adapter(Path(run.adapter(0)))
    other = open_run(
        str(tmp_path / "other"), config.model_copy(update={"target": config.target.model_copy(update={"model": "org/b"})}), False
    )
    adapter(Path(other.adapter(0)), b"others")
    adapter(tmp_path / "lora", b"lora")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    named = named_models(config, "plain=base, dat=run ,else=other/,lora=lora,full=model,hub=org/a.b")
    assert [model.name for model in named] == ["plain", "dat", "else", "lora", "full", "hub"]
    plain, dat, foreign, lora, full, hub = named
    assert (plain.adapter, plain.weights, plain.source) == (None, config.target.model, None)
    assert (dat.adapter, dat.source) == (str(tmp_path / "run/training/round-0/adapter"), None)
    assert foreign.source == "org/b"
    assert lora.adapter == str(tmp_path / "lora")
    assert len({dat.weights, foreign.weights, lora.weights}) == 3
    assert (full.adapter, full.source) == (None, str(tmp_path / "model"))
    assert (hub.adapter, hub.source, hub.weights) == (None, "org/a.b", "org/a.b")
    assert [model.name for model in own_models(config, run)] == ["base", "adapted"]
    assert own_models(config, run)[1].weights == dat.weights


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base", "NAME=WHAT"),
        ("a=base,a=org/b", "two models"),
        ("a-b=base", "letters, digits"),
        ("../x=base", "letters, digits"),
        ("a=./nowhere", "is not a folder"),
        ("a=EMPTY", "no run.json"),
        ("a=RUN", "dat train"),
    ],
)
def test_what_cannot_be_a_model_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    open_run(str(tmp_path / "run"), recipe(), resume=False)
    text = text.replace("EMPTY", str(tmp_path / "empty")).replace("RUN", str(tmp_path / "run"))
    with pytest.raises(InputError, match=words) as caught:
        named_models(recipe(), text)
    assert "\n" not in str(caught.value)
