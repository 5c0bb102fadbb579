"""Writes what a second sampler in-paints for the demo's held-out goals as a file of ready prompts.

    dat adapt embedded:smollm2-135m-instruct --recipe studies/demo-arms/heldout-sampler.yaml --out runs/heldout-sampler
    python studies/heldout_prompts.py runs/heldout-sampler/sampler runs/heldout-inpainted.jsonl

For each goal the first `KEPT` of `DRAWN` prompts that are on it by the demo's own floor, in the order of the draws, whatever any
model answers to them. A goal without any is left out, and counted. The order of a goal's draws and their seeds are fixed by
`studies/on_goal.py`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from on_goal import draw

from dat_ray.config.loading import load_recipe

DRAWN, KEPT = 24, 4
FLOOR = load_recipe("demo").evaluation.min_goal_similarity
GOALS = "builtin:demo-heldout"


def kept(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the file: prompts on their goal, each once a goal."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        of_goal = found[row["behavior_id"]]
        if row["goal_similarity"] >= FLOOR and len(of_goal) < KEPT:
            of_goal.setdefault(
                row["prompt"].strip(),
                {
                    "id": row["behavior_id"],
                    "goal": row["goal"],
                    "prompt": row["prompt"].strip(),
                    "target": row["target"],
                    "similarity": round(row["goal_similarity"], 3),
                },
            )
    return [line for lines in found.values() for line in lines.values()]


def main(sampler: str, out: str) -> None:
    settings = [f"sampler.model={sampler}", f"behaviors.path={GOALS}", "behaviors.heldout.path=builtin:demo-dev"]
    settings += ["sampler.no_repeats=false"]  # the demo's law when the file was made
    rows = draw(settings, DRAWN)
    lines = kept(rows)
    Path(out).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    on_goal = sum(row["goal_similarity"] >= FLOOR for row in rows)
    goals, with_some = {row["behavior_id"] for row in rows}, {line["id"] for line in lines}
    print(f"{on_goal} of {len(rows)} prompts are on their goal")
    print(f"{len(lines)} are kept, for {len(with_some)} of {len(goals)} goals: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sampler", help="folder of the second sampler")
    parser.add_argument("out", help="file of the prompts")
    given = parser.parse_args()
    main(given.sampler, given.out)
