"""In what a recipe's judge differs from the one that was published under its name: rates of the two don't compare."""

from __future__ import annotations

import hashlib

from dat_ray.config.models import JudgeConfig
from dat_ray.engines.judge_prompts import RUBRIC, XSTEST

# Parts of the names of models that the judges were published with, as the end of a hub id or a folder has them.
READERS = {
    "harmbench": ("HarmBench-Llama-2-13b-cls", "HarmBench-Mistral-7b-val-cls"),
    "strongreject-finetuned": ("strongreject-15k-v1",),
    "strongreject-rubric": ("GPT-4",),
    "xstest": ("GPT-4",),
}
# sha256 of the prompts in StrongREJECT's repository (public:strongreject/judge_templates.json).
PROMPTS = {
    "harmbench": "788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0",
    "strongreject-finetuned": "d90102b02d66b34a3dbf7d82789ce92310965503a481dc725232626bd7700937",
    "strongreject-rubric": "0a282b857e1e53ff6ec92c91eb960d2444806e2e4518f4a40232549b599963d0",
}


def deviations(config: JudgeConfig, prompt: str) -> list[str]:
    """One sentence for each difference, without its end; a judge that was published as rules or with any model has none.

    Args:
        config: of a judge that asks a model.
        prompt: what it asks, see `read_prompt`.
    """
    assert config.reader is not None
    found, known = [], READERS.get(config.name, ())
    model = config.reader.model.rstrip("/").rsplit("/", 1)[-1]
    if known and not any(name.lower() in model.lower() for name in known):
        found.append(f"published with {' or '.join(known)} as its reader, here {config.reader.model} reads")
    if prompt in (RUBRIC, XSTEST):
        found.append("asks in this project's own wording, not in that of the published prompt")
    elif config.name in PROMPTS and hashlib.sha256(prompt.encode()).hexdigest() != PROMPTS[config.name]:
        found.append("asks with another prompt than the published one")
    return found
