"""The `dat` command. A verb is one function, and imports only the stage that it runs.

dat run demo
dat recipes show demo
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dat_ray import __version__
from dat_ray.bench.verb import BENCHES
from dat_ray.errors import DatError, InputError, Stopped
from dat_ray.ops.export_verb import add_export
from dat_ray.ops.study_verb import add_study
from dat_ray.ops.verbs import add_verbs
from dat_ray.options import refuse_unused
from dat_ray.own_stdout import own_stdout
from dat_ray.preflight import check_places
from dat_ray.printable import printable
from dat_ray.rehearsal.rehearse_verb import add_rehearse
from dat_ray.secrets import redact
from dat_ray.signals import unwinding_signals

if TYPE_CHECKING:
    from dat_ray.config.schema import Recipe

STAGES = ("generate", "select", "train", "evaluate", "report")

_STAGE_HELP = {
    "generate": "sample prompts, let the target answer, judge; shards in candidates/",
    "select": "keep the most effective prompts of each behavior; training_set/",
    "train": "adversarial fine-tuning; training/round-N/adapter/",
    "evaluate": "attack the base and the fine-tuned model; evaluation/SUITE/metrics.json",
    "report": "one HTML file; report/index.html",
}


def _recipe_of(arguments: argparse.Namespace, stages: Sequence[str]) -> Recipe:
    """The recipe that is named, or that of the run directory, whose addresses, variables and files somebody has to vouch for."""
    from dat_ray.config.loading import load_recipe, with_overrides
    from dat_ray.data.rundir import RunDir, open_to_read
    from dat_ray.data.shards import exists

    root = arguments.run_dir
    if arguments.recipe is None and root and exists(RunDir(root).record):
        from dat_ray.data.trust import require_trust
        from dat_ray.pipeline.stages import sections_read

        run, record = open_to_read(root)
        recipe = with_overrides(record.recipe, arguments.set)
        sections = sections_read(stages, recipe, run)
        if arguments.verb == "evaluate" and arguments.models and not exists(run.behaviors):
            sections |= {"behaviors", "selection.rewrites", "training.retain"}
        if sections:  # `report` has no such option: it reads the directory alone
            require_trust(recipe, sections, root, option="--run-dir", trusted=arguments.trust_run_dir, settings=arguments.set)
        return recipe
    # A mistyped directory must not begin the demo there.
    if arguments.recipe is None and (root or stages[0] != "generate"):
        raise InputError("--run-dir", root, "give the directory of a run that has begun, or name a recipe")
    return load_recipe(arguments.recipe or "demo", arguments.set)


def _stage(arguments: argparse.Namespace, stages: Sequence[str]) -> int:
    from dat_ray.data.rundir import RunDir, open_run
    from dat_ray.data.shards import exists

    starts = stages[0] == "generate"
    recipe = _recipe_of(arguments, stages)
    root = arguments.run_dir or os.path.join("runs", recipe.name)
    check_places("--run-dir", root)
    from dat_ray.pipeline.stages import check_inputs, run_stages

    # Only the first stage can begin a run; the later ones continue what it left.
    if not starts and not exists(RunDir(root.rstrip("/")).record):
        raise InputError("--run-dir", root, "holds no run: begin one with `dat run` or `dat generate`, or give its directory")
    behaviors = check_inputs(recipe, trains="train" in stages) if starts else None
    if stages == ("report",) and arguments.recipe is None:
        # It only reads: a run of another version, whose recipe has other fields, can still be looked at.
        run_stages(recipe, RunDir(root.rstrip("/")), stages)
        return 0
    run = open_run(root, recipe, resume=arguments.resume or not starts)
    run_stages(recipe, run, stages, behaviors)
    return 0


def _report(arguments: argparse.Namespace, stages: Sequence[str]) -> int:
    if arguments.out is None:
        return _stage(arguments, stages)
    from dat_ray.data.rundir import RunDir, open_run, read_record
    from dat_ray.pipeline.stages import report_elsewhere

    recipe = _recipe_of(arguments, stages)
    run = RunDir((arguments.run_dir or os.path.join("runs", recipe.name)).rstrip("/"))
    read_record(run)
    if arguments.recipe is not None:
        open_run(run.root, recipe, resume=True)
    report_elsewhere(recipe, run, arguments.out)
    return 0


# By what `dat evaluate` does besides a run's own suite, which is "": options that say nothing then.
_EVALUATE_UNUSED = {
    "list": ("recipe", "run_dir", "trust_run_dir", "resume", "set", "calibrate", "replay", "models", "judge", "suite", "out"),
    "calibrate": ("replay", "models", "judge", "suite"),
    "replay": ("models", "run_dir", "out", "json"),
    "models": ("judge", "out", "json"),
    "": ("judge", "suite", "out", "json"),
}
_EVALUATE_REMEDIES = {
    "judge": "belongs to --replay; a run's judge is `--set judge.name=...`",
    "out": "belongs to --calibrate",
    "json": "belongs to --calibrate or --list",
    "suite": "belongs to --models or --replay: a run's own suite is `default`",
}


def _evaluate(arguments: argparse.Namespace, stages: Sequence[str]) -> int:
    if arguments.suite is not None:
        from dat_ray.config.names import check_name

        check_name("--suite", arguments.suite)
    mode = next((name for name in _EVALUATE_UNUSED if name and getattr(arguments, name)), "")
    refuse_unused(arguments, f"--{mode}", _EVALUATE_UNUSED[mode], _EVALUATE_REMEDIES)
    if arguments.list:
        from dat_ray.evaluation.command import list_parts

        list_parts(arguments.json)
        return 0
    if arguments.calibrate:
        from dat_ray.config.loading import load_recipe
        from dat_ray.evaluation.command import measure_judge

        recipe = _recipe_of(arguments, stages) if arguments.run_dir else load_recipe(arguments.recipe or "demo", arguments.set)
        measure_judge(recipe.judge, arguments.calibrate, arguments.out, arguments.json)
        return 0
    if arguments.replay:
        from dat_ray.config.loading import load_recipe
        from dat_ray.pipeline.evaluations import rescore

        own = load_recipe(arguments.recipe) if arguments.recipe else None
        rescore(arguments.replay, arguments.judge, arguments.set, arguments.suite, own=own, trusted=arguments.trust_run_dir)
        return 0
    if not arguments.models:
        return _stage(arguments, stages)
    from dat_ray.data.rundir import RunDir, open_run
    from dat_ray.pipeline.evaluations import check_compared, compare

    recipe = _recipe_of(arguments, stages)
    root = arguments.run_dir or os.path.join("runs", recipe.name)
    # Before the directory is made, so that a mistake leaves nothing behind that the next try has to agree with.
    check_compared(recipe, RunDir(root.rstrip("/")), arguments.models)
    compare(recipe, open_run(root, recipe, resume=True), arguments.models, arguments.suite)
    return 0


def _sweep(arguments: argparse.Namespace) -> int:
    from dat_ray.config.sweep import read_sweep
    from dat_ray.pipeline.sweep import sweep

    plan = read_sweep(arguments.recipe, arguments.set, arguments.grid, arguments.parallel)
    root = arguments.sweep_dir or os.path.join("runs", f"{plan.base.name}-sweep")
    check_places("--sweep-dir", root)
    sweep(plan, root, resume=arguments.resume)
    return 0


def _adapt(arguments: argparse.Namespace) -> int:
    from dat_ray.config.adapt import load_adapt_config
    from dat_ray.pipeline.adapt import adapt_model

    config = load_adapt_config(arguments.recipe, arguments.set)
    check_places("--out", arguments.out)
    adapt_model(arguments.base, arguments.out, config, pairs=arguments.pairs, resume=arguments.resume)
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from dat_ray.bench.verb import run_bench

    return run_bench(arguments.name, arguments.options)


def _recipes(arguments: argparse.Namespace) -> int:
    from dat_ray.config.loading import fingerprint, list_recipes, load_recipe

    if arguments.action == "list":
        refuse_unused(arguments, "`dat recipes list`", ("name", "set"))
        found = {name: load_recipe(name).description for name in list_recipes()}
        if arguments.json:
            print(json.dumps(found, indent=1))
        else:
            for name, description in found.items():
                print(f"{name:24} {description}")
        return 0
    if arguments.name is None:
        raise InputError("NAME", None, f"name a recipe: {', '.join(list_recipes())}")
    recipe = load_recipe(arguments.name, arguments.set)
    if arguments.json:
        print(json.dumps({"fingerprint": fingerprint(recipe), "recipe": recipe.model_dump(mode="json")}, indent=1))
        return 0
    from dat_ray.config.sources import annotated

    print(f"# fingerprint {fingerprint(recipe)}; every field, defaults written out")
    print(annotated(recipe, arguments.set), end="")
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    from dat_ray.progress import stage_line
    from dat_ray.reporting.curves import curves

    stage_line(f"curves: {curves(arguments.run_dirs, arguments.out)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dat", description="Distributional adversarial training of language models, on Ray.")
    parser.add_argument("--version", action="version", version=f"dat_ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        verb.set_defaults(run=run)
        return verb

    def settings(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one field; may be repeated")

    def stage_verb(
        name: str,
        text: str,
        stages: tuple[str, ...],
        run: Callable[[argparse.Namespace, Sequence[str]], int] = _stage,
    ) -> argparse.ArgumentParser:
        verb = add(name, text, lambda arguments: run(arguments, stages))
        absent = "that of the run in --run-dir" + (", or demo without --run-dir" if stages[0] == "generate" else "")
        named = f"a name of `dat recipes`, or a YAML file; absent: {absent}"
        verb.add_argument("recipe", nargs="?", metavar="RECIPE", help=named)
        verb.add_argument("--run-dir", metavar="DIR", help="a folder, shared by all nodes on a cluster; default runs/NAME")
        verb.add_argument("--resume", action="store_true", help="continue what is there, or start")
        if stages != ("report",):
            verb.add_argument(
                "--trust-run-dir",
                action="store_true",
                help="without RECIPE: use the addresses, environment variables and files that the run directory's stored "
                "recipe names (they are listed first); whoever can write there can change them",
            )
        settings(verb)
        return verb

    stage_verb("run", "all stages in order, each skipped when its output is complete", STAGES)
    for name in STAGES:
        if name not in ("evaluate", "report"):
            stage_verb(name, _STAGE_HELP[name], (name,))
    page = stage_verb("report", _STAGE_HELP["report"], ("report",), _report)
    page.add_argument("--out", metavar="DIR", help="folder of the page, for a run directory that may only be read")
    evaluate = stage_verb("evaluate", _STAGE_HELP["evaluate"], ("evaluate",), _evaluate)
    evaluate.add_argument("--list", action="store_true", help="print attacks and judges, and what each needs")
    evaluate.add_argument(
        "--calibrate", nargs="+", metavar="FILE", help="measure the recipe's judge on answers that people have labeled"
    )
    evaluate.add_argument("--out", metavar="JSON", help="with --calibrate: file for the figures")
    evaluate.add_argument("--json", action="store_true", help="with --list or --calibrate: for programs")
    evaluate.add_argument(
        "--models",
        metavar="NAME=WHAT,...",
        help="compare these on the held-out behaviors, the others with the first; WHAT: base, a run directory, "
        "an adapter folder, a model folder, or a hub id of a model or adapter, with or without @REVISION",
    )
    evaluate.add_argument(
        "--replay", metavar="DIR", help="score the stored completions of an evaluation folder or run again, without the model"
    )
    evaluate.add_argument("--judge", metavar="NAME", help="of --replay; its fields by --set judge.FIELD=...")
    evaluate.add_argument("--suite", metavar="NAME", help="folder below evaluation/ for --models or --replay")

    sweep = add("sweep", "a run for each point of a grid, and the front of robustness against compliance", _sweep)
    sweep.add_argument("recipe", metavar="RECIPE", help="a name of `dat recipes`, or a YAML file")
    sweep.add_argument(
        "--grid", action="append", required=True, metavar="a.b=1,2,5", help="values of one field; repeated, all combinations"
    )
    sweep.add_argument("--sweep-dir", metavar="DIR", help="a folder, shared by all nodes; default runs/NAME-sweep")
    sweep.add_argument("--parallel", type=int, metavar="N", help="points that run at the same time (default: 1)")
    sweep.add_argument("--resume", action="store_true", help="continue what is there, or start; failed points are tried again")
    settings(sweep)

    add_study(add, settings)

    adapt = add("adapt", "turn a causal language model into a masked-diffusion prompt sampler", _adapt)
    adapt.add_argument("base", metavar="BASE", help="hub id, folder, or embedded:NAME")
    adapt.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the sampler; with trainer.min_actors > 1, one that all nodes share"
    )
    adapt.add_argument(
        "--recipe", default="chat-infill", metavar="RECIPE", help="adaptation recipe, a name or YAML file (default: %(default)s)"
    )
    adapt.add_argument(
        "--pairs",
        metavar="TABLE",
        help="CSV, JSONL, JSON or parquet file, folder, or hf:OWNER/NAME, with columns pairs.prompt and pairs.response; "
        "absent: the model writes its own",
    )
    adapt.add_argument("--resume", action="store_true", help="continue what is there, or start")
    settings(adapt)

    add_export(add)

    curves = add("curves", "the training curves of several runs on one page", _curves)
    curves.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="directories of runs that have begun training")
    curves.add_argument("--out", required=True, metavar="DIR", help="folder of the page and its numbers")

    bench = add("bench", "micro-benchmarks: `dat bench NAME --help` has each one's options", _bench)
    bench.add_argument("name", choices=tuple(BENCHES), help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))
    bench.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark; --json for programs")

    recipes = add("recipes", "list recipes, or print one resolved", _recipes)
    recipes.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    recipes.add_argument("name", nargs="?", metavar="NAME")
    recipes.add_argument("--json", action="store_true", help="for programs")
    settings(recipes)

    add_rehearse(add, settings)
    add_verbs(add, settings)
    return parser


def _stopped(arguments: argparse.Namespace, stop: BaseException) -> int:
    """Says what is left of a work that was stopped."""
    left = "stopped"
    if isinstance(stop, Stopped):
        left += f"; {stop}"
    elif hasattr(arguments, "resume") and not getattr(arguments, "calibrate", None):
        left += "; what is finished is kept, --resume continues"
    print(f"dat {arguments.verb}: {left}", file=sys.stderr)
    return 130


# Options and arguments that hold local paths, of all verbs; a shell expands `~` at the start of a word alone, not in --out=~/x.
_PATHS = (
    *("recipe", "name", "base", "pairs", "calibrate", "replay", "merge", "cluster"),
    *("run_dir", "run_dirs", "out", "sweep_dir", "study", "study_dir", "working_dir"),
)


def _expand_homes(arguments: argparse.Namespace) -> None:
    """Writes out `~` in every path of the command line, but in the run directory of a job: that is another machine's home.

    Raises:
        InputError: no such home, or an empty text in place of a path.
    """
    from dat_ray.config.section import expand_home

    for name in _PATHS:
        value = getattr(arguments, name, None)
        if value == "" or (isinstance(value, list) and "" in value):
            # Most often a shell's variable that is not set; what is left out has a default, and this has none.
            raise InputError(name.upper(), "", "is empty: name it, or leave it out")
        if value is None or (arguments.verb, name) == ("submit", "run_dir"):
            continue
        try:
            setattr(arguments, name, list(map(expand_home, value)) if isinstance(value, list) else expand_home(value))
        except ValueError as error:
            raise InputError(name, value, str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit status: 0, 1 (failed), 2 (bad input), 130 (stopped)."""
    arguments = _parser().parse_args(argv)
    with unwinding_signals() as signals, own_stdout():
        try:
            _expand_homes(arguments)
            return int(arguments.run(arguments))
        except KeyboardInterrupt as stop:
            return _stopped(arguments, stop)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if signals:  # what came of it: processes of the same terminal are stopped too
                return _stopped(arguments, error)
            if isinstance(error, DatError):
                print(f"dat {arguments.verb}: {error}", file=sys.stderr)
                return error.exit_code
            # Nobody foresaw it, so its place is worth more than one line; what it says is still somebody else's text.
            lines = redact("".join(traceback.format_exception(error))).splitlines()
            print(*map(printable, lines), sep="\n", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
