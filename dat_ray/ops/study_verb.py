"""The command line of `dat study`. Light, so that `dat --help` is instant."""

from __future__ import annotations

import argparse
import os

from dat_ray.ops.verbs import Add, Settings
from dat_ray.options import refuse_unused
from dat_ray.preflight import check_places
from dat_ray.printable import printable


def add_study(add: Add, settings: Settings) -> None:
    """Adds the verb to a parser.

    Args:
        add: makes a verb of a name, a help text and a function.
        settings: gives a verb the option `--set`.
    """
    study = add("study", "train arms under several seeds and compare them: one table, intervals over seeds and behaviors", _study)
    study.add_argument("study", metavar="FILE", help="a YAML file, or the name of a study that comes with the package")
    study.add_argument("--study-dir", metavar="DIR", help="a folder, shared by all nodes; default runs/NAME-study")
    study.add_argument("--plan", action="store_true", help="say how long it takes, and start nothing")
    study.add_argument(
        "--device", metavar="NAME", help="with --plan: what every actor has, as for `dat plan`; absent: what is here"
    )
    study.add_argument("--resume", action="store_true", help="continue what is there, or start; arms and seeds may be added")
    study.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ARM@SEED",
        help="make these runs alone, as in --only 'dat@*', as a part of the study; may be repeated",
    )
    study.add_argument(
        "--merge",
        nargs="+",
        metavar="DIR",
        help="train nothing: page and tables from the records of parts that were made apart",
    )
    settings(study)


def _study(arguments: argparse.Namespace) -> int:
    from dat_ray.config.study import read_study

    if arguments.plan:
        refuse_unused(arguments, "--plan", ("merge",))
    else:
        remedy = "belongs to --plan; what actors have is the recipe's `cluster`"
        refuse_unused(arguments, "no --plan", ("device",), {"device": remedy})
    plan = read_study(arguments.study, arguments.set)
    if arguments.only:
        plan = plan.part(arguments.only)
    if arguments.plan:
        from dat_ray.planning.estimate import choose_device
        from dat_ray.planning.study_plan import study_plan_text

        device = choose_device(plan.runs[0].recipe, arguments.device)
        print(*map(printable, study_plan_text(plan, device).splitlines()), sep="\n")
        return 0
    from dat_ray.pipeline.study import OPTION, merge_study, study

    end = "study" if arguments.merge is None else "merged"
    root = arguments.study_dir or os.path.join("runs", f"{plan.config.name}-{end}")
    check_places(OPTION, root)
    if arguments.merge is not None:
        merge_study(plan, arguments.merge, root)
        return 0
    study(plan, root, resume=arguments.resume)
    return 0
