"""Builds the documentation site from the project's Markdown files and docstrings.

    python docs/build.py [--serve]

Every tracked Markdown file, and every picture of docs/, is copied into `build/site-source`, at the place where it lies in the
project; then MkDocs builds `build/site`. A broken link, a page that no menu names and a docstring that cannot be read fail
the build.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "build" / "site-source"
# The first page of the site, and of every folder that has one.
INDEX = "index.md"


def pages() -> list[Path]:
    """The project's Markdown files and the pictures in them, those of the tests left out."""
    listed = subprocess.run(["git", "ls-files", "*.md", "docs/*.svg"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines() if Path(name).parts[0] not in {"tests", ".github"}]


def lay_out() -> None:
    """Mirrors the pages; MkDocs reads README.md as a folder's index by itself."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in pages():
        place = SOURCE / page
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / page, place)
    shutil.copyfile(ROOT / "LICENSE", SOURCE / "LICENSE")


def main() -> int:
    """Lays the pages out, and builds or serves the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="build, serve on this machine, and build again what changes")
    verb = ["serve"] if parser.parse_args().serve else ["build", "--strict"]
    lay_out()
    return subprocess.run([sys.executable, "-m", "mkdocs", *verb], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
