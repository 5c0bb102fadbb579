"""The command line of `dat export`. Light, so that `dat --help` is instant."""

from __future__ import annotations

import argparse

from dat_ray.errors import InputError
from dat_ray.ops.verbs import Add
from dat_ray.preflight import check_places


def add_export(add: Add) -> None:
    """Adds the verb to a parser.

    Args:
        add: makes a verb of a name, a help text and a function.
    """
    export = add("export", "write a run's fine-tuned model, or its evaluation, as files that other tools load", _export)
    export.add_argument("run_dir", metavar="RUN_DIR", help="directory of a run; with --as also an evaluation's folder")
    export.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the files; of a model, OUT/adapter holds the adapter"
    )
    export.add_argument(
        "--as",
        dest="form",
        default="model",
        choices=("model", "jailbreakbench", "harmbench", "inspect"),
        help="model: merged weights and adapter (default); the others: every attack of an evaluation as JailbreakBench "
        "artifacts, HarmBench completions and results, or logs of inspect_ai",
    )
    export.add_argument("--suite", metavar="NAME", help="with --as: which evaluation of the run (default: its own)")
    export.add_argument("--names", metavar="MODEL=NAME,...", help="with --as: what models are called in the files")
    export.add_argument(
        "--push", metavar="ORG/NAME", help="send adapter and card to a model repository of the hub; the token is HF_TOKEN's"
    )
    export.add_argument("--public", action="store_true", help="with --push: everybody may see the repository (default: private)")


def _export(arguments: argparse.Namespace) -> int:
    from dat_ray.progress import stage_line

    check_places("--out", arguments.out)
    if arguments.form != "model":
        if arguments.push or arguments.public:
            raise InputError("--push", arguments.push, f"sends a run's adapter, no evaluation: leave --as {arguments.form} out")
        from dat_ray.pipeline.exchange import export_evaluation

        folder = export_evaluation(arguments.run_dir, arguments.out, arguments.form, arguments.suite, arguments.names)
        stage_line(f"{folder}: the evaluation as {arguments.form}, with the answers of attacked models: mind who reads it")
        return 0
    for option in ("suite", "names"):
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option}", getattr(arguments, option), "belongs to the export of an evaluation: add --as")
    from dat_ray.ops.push import check_push, push_folder
    from dat_ray.pipeline.export import export_run

    if arguments.push is not None:
        check_push(arguments.push)
    elif arguments.public:
        raise InputError("--public", True, "belongs to --push: name the repository")
    folder = export_run(arguments.run_dir, arguments.out)
    stage_line(f"{folder}: merged model, tokenizer and card; the adapter in {folder / 'adapter'}")
    if arguments.push is not None:
        stage_line(f"push: {push_folder(folder / 'adapter', arguments.push, public=arguments.public)}")
    return 0
