"""An installed package has every file that its code reads."""

from __future__ import annotations

import tomllib
from pathlib import Path

import dat_ray

PACKAGE = Path(dat_ray.__file__).parent


def test_every_file_of_the_package_is_installed_with_it() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["dat_ray"]
    installed = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    # Caches have files of other names too, while another process compiles.
    found = (path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts and path.is_file())
    there = {path for path in found if path.suffix != ".py"}
    assert there, "the package has data files"
    assert sorted(str(path.relative_to(PACKAGE)) for path in there - installed) == []
