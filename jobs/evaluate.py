"""Entry point of a Ray job: the verb `dat evaluate`, with its options.

dat submit evaluate RECIPE --run-dir /shared/runs/NAME

It packs what may go along, and refuses secrets; `--print` shows the plain `ray job submit` line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dat_ray.cli import main as dat


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the stage on the cluster that RAY_ADDRESS names, as it does inside a job; returns the exit status."""
    return dat(["evaluate", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
