"""Shared fixtures: the public data sets, which lie beside the project and are not part of it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Tests share two cores: one OpenMP thread each keeps timings and results steady.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Servers of the tests are on this machine, whatever proxy leads out of it.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))
# Ray makes its workers nicer than whatever else a busy machine runs: beside two busy processes they stood still.
os.environ.setdefault("RAY_worker_niceness", "0")

# No test depends on how fast the machine is. Where only those of a GPU run, hypothesis need not be there.
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


# Tests with clusters that run in the process of those with engines, so that either of the two has about half of the time. Each
# of the processes has a small cluster of its own.
BESIDE_ENGINES = tuple(f"tests/ray/test_{name}.py" for name in ("adapt", "diagnosis", "jobs", "rehearsal"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `-n 2` shares the tests out.

    First those without clusters and engines, each file in whichever process is free: a file stays in one piece, so that what its
    tests share is made once. Then the others in two halves, one after another in a process each: an engine or a cluster that
    was started in a process stays for the tests after it, and tests without any should not find one.
    """
    # Where tests are not shared out, as on a GPU machine, xdist need not be there.
    from xdist.scheduler import LoadScopeScheduling

    # In the order of `testpaths`, not the largest file first.
    config.option.loadscopereorder = False

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path.startswith(("tests/gpu/", "tests/models/", *BESIDE_ENGINES)):
                return "engines"
            return "clusters" if path.startswith("tests/ray/") else path

    return ByRoom(config, log)


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of the public data sets; tests that need them skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public data sets are not beside the project (../shared/data)")
    return folder


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as Lustre is by default."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
