"""The command line of this room: `dat doctor`, `dat plan`, `dat submit`, `dat status`. Light, so that `dat --help` is instant."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from dat_ray.config.schema import Recipe
from dat_ray.devices import CPU, GPUS
from dat_ray.options import refuse_unused
from dat_ray.printable import printable

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]
Settings = Callable[[argparse.ArgumentParser], None]


def add_verbs(add: Add, settings: Settings) -> None:
    """Adds the verbs to a parser.

    Args:
        add: makes a verb of a name, a help text and a function.
        settings: gives a verb the option `--set`.
    """
    doctor = add("doctor", "say before anything starts what would fail or wait, and why", _doctor)
    doctor.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a name of `dat recipes`, or a YAML file; absent: this machine"
    )
    doctor.add_argument("--run-dir", metavar="DIR", help="check its space, and that every node of the cluster can write it")
    doctor.add_argument(
        "--cluster", metavar="FILE", help="a cluster YAML or KubeRay manifest: checked, and the recipe against its groups"
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    settings(doctor)

    plan = add("plan", "hours, memory, disk and model calls of a recipe by arithmetic, before anything is paid for", _plan)
    plan.add_argument("recipe", metavar="RECIPE", help="a name of `dat recipes`, or a YAML file")
    plan.add_argument(
        "--device",
        metavar="NAME",
        help=f"what every actor has: {', '.join((*GPUS, CPU))} (this machine's cores); absent: h100 where the recipe asks for "
        "GPUs, else cpu",
    )
    plan.add_argument("--json", action="store_true", help="for programs: seconds and bytes")
    settings(plan)

    submit = add("submit", "check, pack and run one stage as a Ray job; exits as the job does", _submit)
    submit.add_argument("stage", choices=("generate", "train", "evaluate", "run"), metavar="STAGE", help="%(choices)s")
    submit.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a name of `dat recipes`, or a YAML file in the working directory, which goes along by itself",
    )
    submit.add_argument("--address", required=True, metavar="URL", help="of the dashboard, as in http://localhost:8265")
    submit.add_argument("--run-dir", metavar="DIR", help="as the cluster's nodes see it: a shared folder, s3:// or gs://")
    submit.add_argument(
        "--working-dir",
        default=".",
        metavar="DIR",
        help="folder that goes along: the files that git tracks, as they are in it (default: the current one)",
    )
    submit.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATH",
        help="file, folder or pattern below it that goes along too; without git the only ones; may be repeated",
    )
    submit.add_argument(
        "--exclude", action="append", default=[], metavar="PATH", help="file, folder or pattern that stays here; may be repeated"
    )
    submit.add_argument("--verbose", action="store_true", help="list every file that goes along")
    submit.add_argument("--dry-run", action="store_true", help="check, pack and list everything, and send nothing")
    submit.add_argument("--resume", action="store_true", help="continue what is there, or start")
    submit.add_argument("--no-wait", action="store_true", help="return as soon as the job is accepted")
    submit.add_argument("--print", action="store_true", help="pack, print the plain `ray job submit` line, and send nothing")
    settings(submit)

    status = add("status", "rows done, rate, time left and what blocks, from a run directory", _status)
    status.add_argument(
        "run_dir", metavar="RUN_DIR", help="local path, s3:// or gs://; with RAY_ADDRESS set, pools are shown too"
    )
    status.add_argument("--json", action="store_true", help="for programs")


def _recipe(arguments: argparse.Namespace) -> Recipe | None:
    from dat_ray.config.loading import load_recipe

    return load_recipe(arguments.recipe, arguments.set) if arguments.recipe else None


def _doctor(arguments: argparse.Namespace) -> int:
    from dat_ray.ops.doctor import as_json, diagnose

    if arguments.recipe is None:
        refuse_unused(arguments, "no RECIPE", ("set",), {"set": "changes a field of a recipe: name the RECIPE"})
    checks = diagnose(_recipe(arguments), arguments.run_dir, arguments.cluster)
    report = as_json(checks)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0 if report["ok"] else 1
    for check in checks:
        print(printable(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}"))
        if not check.ok:
            print(printable(f"     -> {check.remedy}"))
    failed = sum(not check.ok for check in checks)
    print("ready" if not failed else f"{failed} of {len(checks)} checks failed")
    return 0 if report["ok"] else 1


def _plan(arguments: argparse.Namespace) -> int:
    from dat_ray.config.loading import load_recipe
    from dat_ray.planning.estimate import as_json, choose_device, plan_run
    from dat_ray.planning.plan_text import plan_text

    recipe = load_recipe(arguments.recipe, arguments.set)
    plan = plan_run(recipe, choose_device(recipe, arguments.device))
    if arguments.json:
        print(json.dumps(as_json(plan), indent=1))
        return 0
    for line in plan_text(plan).splitlines():
        print(printable(line))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    from dat_ray.ops.submit import run_submission

    return run_submission(arguments)


def _status(arguments: argparse.Namespace) -> int:
    from dat_ray.ops.status import read_status, show

    status = read_status(arguments.run_dir)
    print(json.dumps(status, indent=1) if arguments.json else show(status))
    return 0
