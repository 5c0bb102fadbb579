"""`benchmarks/gpu.py`: what it runs can be asked for, and what it could not measure it says."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dat_ray.bench.verb import BENCHES
from dat_ray.config.loading import load_recipe

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_record", REPOSITORY / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_every_command_is_one_that_there_is(gpu: ModuleType) -> None:
    from importlib import import_module

    for _, command in gpu.COMMANDS.values():
        words = command[2:]
        if words[0] == "pytest":
            assert (REPOSITORY / words[-1]).is_dir()
            continue
        assert words[:2] == ["dat_ray.cli", "bench"]
        assert words[2] in BENCHES
        parser = import_module("argparse").ArgumentParser()
        import_module(f"dat_ray.bench.{words[2].replace('-', '_')}").configure(parser)
        parser.add_argument("--json", action="store_true")
        options = parser.parse_args(words[3:])
        load_recipe("demo", getattr(options, "set", []))


def test_without_a_gpu_all_is_not_measured_and_nothing_is_run(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "gpu_name", lambda: None)
    monkeypatch.setattr(gpu, "measure", lambda *_: pytest.fail("there is nothing to measure on"))
    assert gpu.main(["--out", str(tmp_path)]) == 1
    text = (tmp_path / "record.md").read_text()
    assert text.count("**not measured**: PyTorch sees no GPU") == len(gpu.COMMANDS)


def test_what_was_measured_is_kept_and_what_failed_says_why(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "gpu_name", lambda: "A card")
    notes = tmp_path / "notes"
    counted = f'open({str(notes)!r}, \'a\').write(\'x\'); print(\'{{"rows_per_s": 2.5, "bench": "b", "repeats": 3}}\')'
    commands = {
        "good": (60, [sys.executable, "-c", counted]),
        "bad": (60, [sys.executable, "-c", "raise SystemExit('no such | card')"]),
        "slow": (1 / 600, [sys.executable, "-c", "import time; time.sleep(60)"]),
        "late": (5000, [sys.executable, "-c", "print(1)"]),
    }
    monkeypatch.setattr(gpu, "COMMANDS", commands)
    assert gpu.main(["--out", str(tmp_path / "out"), "--minutes", "1000"]) == 1
    assert gpu.main(["--out", str(tmp_path / "out"), "--minutes", "1000"]) == 1
    assert notes.read_text() == "x"
    kept = json.loads((tmp_path / "out" / "record.json").read_text())
    reasons = {name: one["reason"] for name, one in kept.items()}
    # How many minutes are left depends on how fast the machine is.
    assert re.fullmatch(r"\d+ minutes were left, it may take 5000", reasons.pop("late"))
    assert reasons == {"good": "", "bad": "exit 1: no such | card", "slow": "no end within 0.00166667 minutes"}
    text = (tmp_path / "out" / "record.md").read_text()
    assert "Device: A card." in text
    assert "| rows_per_s 2.5 |" in text
    assert "**not measured**: exit 1: no such / card" in text
    assert gpu.main(["--out", str(tmp_path / "out"), "--only", "late"]) == 1
    assert "| late | " in (tmp_path / "out" / "record.md").read_text()
    capsys.readouterr()


def test_a_long_result_is_kept_whole_and_one_that_was_cut_is_measured_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--profile` lists kernels: more lines of JSON than are kept of what is no JSON."""
    result = {"bench": "b", "rows_per_s": 2.5, "mfu": 0.25, "profile": {"longest": list(range(200))}}
    code = f"import json; print('a library says hello'); print(json.dumps({result}, indent=1))"
    commands = {
        "long": (60, [sys.executable, "-c", code, "--json"]),
        "words": (60, [sys.executable, "-c", "print(*range(90), sep=chr(10))"]),
        "none": (60, [sys.executable, "-c", "print('}')", "--json"]),
    }
    monkeypatch.setattr(gpu, "gpu_name", lambda: "A card")
    monkeypatch.setattr(gpu, "COMMANDS", commands)
    cut = {"name": "long", "command": "python -c x --json", "seconds": 1.0, "reason": "", "output": "  199\n ]\n}\n}"}
    (tmp_path / "record.json").write_text(json.dumps({"long": cut}))
    assert gpu.main(["--out", str(tmp_path)]) == 1
    kept = json.loads((tmp_path / "record.json").read_text())
    assert json.loads(kept["long"]["output"]) == result
    assert kept["words"]["output"].splitlines() == [str(number) for number in range(50, 90)]
    assert {name: one["reason"] for name, one in kept.items() if one["reason"]} == {
        "none": "it ended well, and what it said is no JSON"
    }
    assert "rows_per_s 2.5, mfu 0.25 |" in (tmp_path / "record.md").read_text()
