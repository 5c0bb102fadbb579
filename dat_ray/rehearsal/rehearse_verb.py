"""The command line of this room: `dat rehearse`. Light, so that `dat --help` is instant."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from dat_ray.preflight import check_places
from dat_ray.printable import printable

Add = Callable[[str, str, Callable[[argparse.Namespace], int]], argparse.ArgumentParser]


def add_rehearse(add: Add, settings: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds the verb to a parser.

    Args:
        add: makes a verb of a name, a help text and a function.
        settings: gives a verb the option `--set`.
    """
    verb = add("rehearse", "run a recipe from first to last with tiny models of its architectures, in minutes", _rehearse)
    verb.add_argument("recipe", metavar="RECIPE", help="a name of `dat recipes`, or a YAML file")
    verb.add_argument("--run-dir", metavar="DIR", help="a new local folder; default runs/NAME-rehearsal")
    verb.add_argument("--backend", choices=("torch", "vllm"), help="of every engine but servers; absent: the recipe's own")
    verb.add_argument("--show-prompts", action="store_true", help="print at the end what each engine reads of a harmless request")
    settings(verb)


def _rehearse(arguments: argparse.Namespace) -> int:
    from dat_ray.config.loading import load_recipe
    from dat_ray.rehearsal.rehearse import check_place, prepare, rehearse, this_machine
    from dat_ray.rehearsal.rendering import rendered_prompts
    from dat_ray.rehearsal.table import replaced_lines, summary

    recipe = load_recipe(arguments.recipe, arguments.set)
    root = arguments.run_dir or os.path.join("runs", f"{recipe.name}-rehearsal")
    check_places("--run-dir", root)
    check_place(root)
    prepared = prepare(recipe, this_machine(), arguments.backend)
    print(*map(printable, replaced_lines(prepared)), "", sep="\n", flush=True)
    print(*map(printable, summary(rehearse(prepared, root))), sep="\n")
    for section, text in rendered_prompts(prepared.recipe) if arguments.show_prompts else ():
        print("", f"{section} reads:", *map(printable, text.splitlines()), sep="\n")
    print(f"rehearsed {recipe.name}: every stage and the export went through")
    return 0
