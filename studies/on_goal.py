"""How often a sampler stays with its goal, by its settings, at which cost: on development goals, never on held-out ones.

    python studies/on_goal.py runs/on_goal "as the demo" "no guidance: sampler.guidance=0"

Each further argument is `NAME: SETTING SETTING ...`, settings of the demo. Four prompts a goal, its targets in turn; the encoder
compares each with its goal, the untrained target scores the response. A finished setting is read, not drawn again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dat_ray.config.loading import load_recipe
from dat_ray.config.models import EncoderConfig
from dat_ray.data.behaviors import load_behaviors
from dat_ray.data.ids import draw_prompt_tokens, row_id, seed_from_id
from dat_ray.engines.base import InfillRequest
from dat_ray.engines.roles import Engines
from dat_ray.engines.similarity import encode_each, similarities
from dat_ray.measures.intervals import Interval, wilson, wilson_pooled

GOALS, SAMPLES, FLOOR = "builtin:demo-dev", 4, 0.6
Rows = Sequence[dict[str, Any]]


def draw(settings: Sequence[str], samples: int = SAMPLES) -> list[dict[str, Any]]:
    """So many prompts a goal under these settings of the demo's sampler, with similarity and mean log p(y | x), nats a token."""
    backends = ["sampler.backend=torch", "target.backend=torch"]
    goals = [f"behaviors.path={GOALS}", "behaviors.targets_per_behavior=4"]
    recipe, engines = load_recipe("demo", [*backends, *goals, *settings]), Engines()
    requests, rows = [], []
    by_goal: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in load_behaviors(recipe.behaviors).table.to_pylist():
        if row["split"] == "train":
            by_goal[row["behavior_id"]].append(row)
    for behavior, targets in by_goal.items():
        for index in range(samples):
            target = targets[index % len(targets)]
            identifier = row_id("exp", behavior, index, target["target"])
            seed = seed_from_id(identifier)
            [tokens] = draw_prompt_tokens(recipe.sampler.prompt_tokens, [seed])
            requests.append(InfillRequest(identifier, target["target"], tokens, seed))
            rows.append({"behavior_id": behavior, "goal": target["goal"], "target": target["target"]})
    drawn = engines.sampler(recipe.sampler, 1).infill(requests)
    # A prompt may be empty: it is no prompt on any goal.
    prompts = [one.prompt if one.prompt.strip() else "?" for one in drawn]
    encoder = engines.encoder(EncoderConfig(), 1)
    cosines = similarities(encode_each(encoder, prompts), encode_each(encoder, [row["goal"] for row in rows]))
    likely = engines.target(recipe.target, 1, None).logprob(prompts, [row["target"] for row in rows])
    for row, one, cosine, value in zip(rows, drawn, cosines, likely, strict=True):
        row |= {"prompt": one.prompt, "nfe": one.nfe, "goal_similarity": cosine, "target_logprob": value}
    return rows


def lines(name: str, rows: Rows) -> Iterator[str]:
    """One row of the table."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["behavior_id"]].append(row)

    def best(of: int) -> Callable[[Rows], bool]:
        return lambda drawn: max(drawn[:of], key=lambda row: row["target_logprob"])["goal_similarity"] >= FLOOR

    def behaviors(outcome: Callable[[Rows], bool]) -> str:
        return shown(wilson(sum(map(outcome, groups.values())), len(groups)))

    one = wilson_pooled({key: [float(row["goal_similarity"] >= FLOOR) for row in drawn] for key, drawn in groups.items()})
    some = behaviors(lambda drawn: any(row["goal_similarity"] >= FLOOR for row in drawn))
    means = [sum(row[column] for row in rows) / len(rows) for column in ("goal_similarity", "target_logprob", "nfe")]
    unique = len({row["prompt"] for row in rows}) / len(rows)
    shares = (shown(one), behaviors(best(2)), behaviors(best(SAMPLES)), some)
    yield f"| {name} | {' | '.join(shares)} | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.1f} | {100 * unique:.0f}% |"


def shown(found: Interval) -> str:
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return f"{100 * found.value:.0f}% [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the prompts that were drawn, a file a setting")
    parser.add_argument("settings", nargs="+", metavar="NAME: SETTING ...")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    for argument in given.settings:
        name, _, settings = argument.partition(":")
        path = folder / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            path.write_text(json.dumps(draw(settings.split()), indent=1))
        for line in lines(name, json.loads(path.read_text())):
            print(line, flush=True)


if __name__ == "__main__":
    main()
