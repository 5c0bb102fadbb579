"""`dat export --as`: a finished evaluation in the files of other tools."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dat_ray import __version__
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model
from dat_ray.models.folders import replace_folder
from dat_ray.pipeline.evaluated import Attacked, Evaluated, read_evaluated
from dat_ray.pipeline.export import RECORD, own_folder
from dat_ray.pipeline.harmbench import harmbench_files
from dat_ray.pipeline.inspect_log import inspect_log, log_name
from dat_ray.pipeline.jailbreakbench import PUBLIC_MODELS, CountTokens, artifact, attack_info, attack_type, exportable
from dat_ray.progress import stage_line

JAILBREAKBENCH, HARMBENCH, INSPECT = "jailbreakbench", "harmbench", "inspect"
FORMS = (JAILBREAKBENCH, HARMBENCH, INSPECT)
OPTION = "--names"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


def export_evaluation(where: str, out: str, form: str, suite: str | None = None, names: str | None = None) -> Path:
    """Writes every attack on every model of an evaluation.

    Args:
        where: a run directory, or an evaluation's folder.
        out: local folder; an export that is there is replaced as a whole, anything else is left alone.
        form: one of `FORMS`.
        suite: of the run directory; default: its own.
        names: `MODEL=NAME,...`, what models are called in the files; default: as in the evaluation.

    Raises:
        InputError: no finished evaluation there, a folder that holds something else, or names of other models.
    """
    folder = own_folder(out)
    evaluated = read_evaluated(where, suite)
    called = _names(evaluated, names)
    blocks = [block for block in evaluated.attacks if block.attempts]
    kept = [block for block in blocks if form == INSPECT or exportable(block)]
    if not kept:
        raise InputError("RUN_DIR", where, f"has no attack whose attempts are prompts alone, as {form} wants them")
    if left_out := list(dict.fromkeys(block.attack for block in blocks if block not in kept)):
        stage_line(f"export: {form} has no place for the attempts of {', '.join(left_out)}, whose prompts are no texts alone")
    with replace_folder(folder) as place:
        if form == JAILBREAKBENCH:
            _write_artifacts(evaluated, kept, called, place)
        for block in kept:
            model = called[block.model]
            if form == HARMBENCH:
                for path, content in harmbench_files(block, model).items():
                    _write(place / block.attack / model / path, content)
            elif form == INSPECT:
                _write(place / log_name(evaluated, block, model), inspect_log(evaluated, block, model))
        about = {"run": evaluated.fingerprint, "suite": evaluated.suite, "form": form, "dat_ray": __version__}
        _write(place / RECORD, about)
    return folder


def _write_artifacts(evaluated: Evaluated, blocks: list[Attacked], called: dict[str, str], place: Path) -> None:
    count = _token_counter(evaluated)
    if count is None:
        stage_line("export: the target's tokenizer is not at hand: counts of tokens are null")
    for attack in dict.fromkeys(block.attack for block in blocks):
        of_attack = [block for block in blocks if block.attack == attack]
        for block in of_attack:
            model = called[block.model]
            _write(place / attack / attack_type(attack) / f"{model}.json", artifact(evaluated, block, model, count))
        info = attack_info([(called[block.model], attack_type(attack)) for block in of_attack])
        _write(place / attack / "attack-info.json", info)
    if unknown := sorted({called[block.model] for block in blocks} - set(PUBLIC_MODELS)):
        known = ", ".join(PUBLIC_MODELS)
        stage_line(f"export: the public package reads artifacts of {known} alone, not of {', '.join(unknown)} ({OPTION})")


def _token_counter(evaluated: Evaluated) -> CountTokens:
    """By the tokenizer of the recipe's target, where that is a folder of this machine and the only model that was asked."""
    config = evaluated.recipe.target
    if config.backend == "endpoint" or evaluated.suite != "default":
        return None
    if not (config.model.startswith("embedded:") or Path(config.model).expanduser().is_dir()):
        return None
    from dat_ray.models.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(config.model, "target.model"), "target.model")
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _names(evaluated: Evaluated, text: str | None) -> dict[str, str]:
    known = list(dict.fromkeys(block.model for block in evaluated.attacks))
    called = {model: model for model in known}
    for part in text.split(",") if text else ():
        model, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or model not in known:
            raise InputError(OPTION, part, f"write MODEL=NAME, with MODEL one of {', '.join(known)}")
        if not _FILE_NAME.fullmatch(name):
            raise InputError(OPTION, name, "is part of a file's name: letters, digits, dots, underscores, dashes and @")
        called[model] = name
    if len(set(called.values())) < len(called):
        raise InputError(OPTION, text, "gives two models one name: give each its own")
    return called


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
