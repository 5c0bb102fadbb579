"""A driver for tests that kill it: generates into a run directory with engines of a given pace.

python generation_driver.py RUN_DIR NOTES SECONDS_PER_ROW
"""

from __future__ import annotations

import sys

from dat_ray.generation.stage import generate
from tests.ray.tiny_generation import Faults, engines, tiny_recipe, tiny_run

if __name__ == "__main__":
    root, notes, pace = sys.argv[1:]
    recipe = tiny_recipe()
    print(generate(recipe, tiny_run(root, recipe), engines(Faults(notes, float(pace)))))
