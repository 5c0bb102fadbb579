"""The environment that vLLM gets, and what is said when it is the wrong vLLM. No engine starts here."""

from __future__ import annotations

import os
import sys

import pytest

from dat_ray.engines import vllm_env
from dat_ray.errors import DatError


@pytest.fixture
def clean(monkeypatch):
    """A process that has not imported vLLM, whose environment is put back afterwards."""
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_CPU_OMP_THREADS_BIND",
        "OMP_NUM_THREADS",
        "VLLM_NO_USAGE_STATS",
        "DO_NOT_TRACK",
        "VLLM_LOGGING_LEVEL",
        "TORCH_CPP_LOG_LEVEL",
        "VLLM_CPU_KVCACHE_SPACE",
    ):
        monkeypatch.setenv(name, "before")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(vllm_env, "installed_version", lambda: "0.32.1")
    return monkeypatch


def test_prepare_sets_what_a_cpu_engine_needs_and_reports_to_nobody(clean):
    vllm_env.prepare(3)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["VLLM_NO_USAGE_STATS"] == os.environ["DO_NOT_TRACK"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


def test_prepare_after_the_import_needs_the_same_settings(clean):
    vllm_env.prepare(2)
    clean.setitem(sys.modules, "vllm", object())
    vllm_env.prepare(2)
    with pytest.raises(DatError, match="OMP_NUM_THREADS=2, needed is 5: start a new process"):
        vllm_env.prepare(5)


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "0.320.0", "1.0.0"])
def test_a_version_outside_the_window_is_refused_by_name(clean, version):
    clean.setattr(vllm_env, "installed_version", lambda: version)
    with pytest.raises(DatError, match=rf"vLLM {version} is installed, tested is 0\.32\.\*"):
        vllm_env.prepare(1)
    assert os.environ["OMP_NUM_THREADS"] == "before"


def test_a_missing_vllm_names_the_other_backend(clean):
    clean.setattr(vllm_env, "installed_version", lambda: None)
    with pytest.raises(DatError, match=r"not installed.*`backend` to torch"):
        vllm_env.prepare(1)


def test_the_installed_build_is_found_under_either_name(monkeypatch):
    def version(name):
        if name == "vllm-cpu":
            return "0.32.0"
        raise vllm_env.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(vllm_env.importlib.metadata, "version", version)
    assert vllm_env.installed_version() == "0.32.0"
    vllm_env.check_version()
