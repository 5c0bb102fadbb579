"""Judges that are models: a prompt for each answer, a reading model, and a parser that may say it could not read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dat_ray.config.models import JudgeConfig, TargetConfig, TemplateConfig
from dat_ray.data.control import control_strings, take_out
from dat_ray.data.public import PUBLIC, public_text
from dat_ray.engines.base import Completion, Judgment, TargetModel
from dat_ray.engines.chat_reply import after_reasoning
from dat_ray.engines.judge_deviations import deviations
from dat_ray.engines.judge_prompts import PUBLISHED, READERS, expected_grade, fill, missing_slot
from dat_ray.errors import InputError, blamed_on

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dat_ray.models.template import ChatTemplate

GRADES = ("1", "2", "3", "4", "5")


class ModelJudge:
    """A judge that asks a model.

    Args:
        config: of the judge.
        reader: the model, built from `config.reader`.

    Raises:
        InputError: a prompt is needed and not given, cannot be read or lacks a slot; the reader cannot do what is asked.
    """

    def __init__(self, config: JudgeConfig, reader: TargetModel) -> None:
        assert config.reader is not None, "the config's validator asks for it"
        self._config, self._reader = config, reader
        self._template = read_prompt(config)
        self.deviations: Sequence[str] = deviations(config, self._template)
        self.is_proxy = config.name == "xstest"
        self._grades = config.name == "strongreject-finetuned"
        if self._grades and config.reader.backend == "endpoint":
            remedy = "grades by token probabilities, which an endpoint does not give: use the backend vllm or torch"
            raise InputError("judge.reader.backend", "endpoint", remedy)
        self.name = f"{config.name} ({config.reader.model})"
        # A guard model brings its own prompt, in its chat template.
        self._guard = _Guard(config, reader) if config.name == "llama-guard" else None
        read_whole = self._guard is None and config.reader.backend != "endpoint" and config.reader.template == "none"
        # In a chat template the reader itself keeps text apart from control tokens.
        self._control = control_strings(_reader_tokenizer(config.reader), self._template) if read_whole else ()
        what: tuple[object, ...] = (
            config.name,
            config.threshold,
            config.reader.model,
            config.reader.system_prompt,
            self._template,
        )
        # What is at its default is left out, so that judges keep the fingerprint they had before there were such settings.
        settings = set(TemplateConfig.model_fields) - {"system_prompt"}
        rendering = config.reader.model_dump(mode="json", include=settings, exclude_defaults=True)
        if config.max_tokens is not None:
            rendering["max_tokens"] = config.max_tokens
        if config.reader.endpoint is not None:
            rendering |= config.reader.endpoint.model_dump(mode="json", include={"omit", "extra_body"}, exclude_defaults=True)
        self.fingerprint = hashlib.sha256(repr((*what, *sorted(rendering.items()))).encode()).hexdigest()[:16]

    def judge(self, goals: Sequence[str], prompts: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        """One judgment for each completion, against its goal; `prompts` are not read."""
        with blamed_on("judge.reader"):
            return self._judged(goals, completions)

    def _judged(self, goals: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        if self._grades:
            return self._graded(goals, completions)
        _, parse, tokens = READERS[self._config.name]
        tokens = self._config.max_tokens or tokens
        if self._guard is not None:
            answers = self._guard.ask(goals, completions, tokens)
        else:
            answers = self._reader.complete(self._asked(goals, completions), tokens)
        assert len(answers) == len(completions), "a model answers each question"
        return [
            Judgment("unparsed", None, answer.error) if answer.error else self._verdict(parse(after_reasoning(answer.text)))
            for answer in answers
        ]

    def _graded(self, goals: Sequence[str], completions: Sequence[str]) -> list[Judgment]:
        asked = self._asked(goals, completions)
        values = self._reader.logprob([one for one in asked for _ in GRADES], list(GRADES) * len(asked))
        rows = [values[start : start + len(GRADES)] for start in range(0, len(values), len(GRADES))]
        return [self._verdict(expected_grade(row)) for row in rows]

    def _asked(self, goals: Sequence[str], completions: Sequence[str]) -> list[str]:
        """The prompts, in which an answer cannot end its turn and speak for the judge."""
        pairs = zip(goals, completions, strict=True)
        return [fill(self._template, take_out(goal, self._control), take_out(text, self._control)) for goal, text in pairs]

    def _verdict(self, score: float | None) -> Judgment:
        if score is None:
            return Judgment("unparsed", None)
        return Judgment("harmful" if score > self._config.threshold else "not_harmful", score)


class _Guard:
    """Shows a guard model a conversation of the goal and the answer, in the guard's own template."""

    def __init__(self, config: JudgeConfig, reader: TargetModel) -> None:
        assert config.reader is not None
        self._reader = reader
        self._template: ChatTemplate | None = None
        self._control: tuple[str, ...] = ()
        if config.reader.backend != "endpoint":
            from dat_ray.models.template import ChatTemplate

            if config.reader.template != "none":
                remedy = "a guard model's template takes whole conversations, which the judge renders itself: set it to none"
                raise InputError("judge.reader.template", config.reader.template, remedy)
            tokenizer = _reader_tokenizer(config.reader)
            self._template = ChatTemplate(tokenizer, TemplateConfig(template_date=config.reader.template_date), "judge.reader")
            self._control = control_strings(tokenizer, self._template.text)

    def ask(self, goals: Sequence[str], completions: Sequence[str], tokens: int) -> list[Completion]:
        conversations = [
            [
                {"role": "user", "content": take_out(goal, self._control)},
                {"role": "assistant", "content": take_out(text, self._control)},
            ]
            for goal, text in zip(goals, completions, strict=True)
        ]
        if self._template is None:
            readings: list[Completion] = self._reader.converse(conversations, tokens)  # type: ignore[attr-defined]
            return readings
        rendered = [self._template.conversation(one) for one in conversations]
        return self._reader.complete(rendered, tokens)


def _reader_tokenizer(reader: TargetConfig) -> PreTrainedTokenizerBase:
    from dat_ray.models.loading import load_tokenizer
    from dat_ray.models.served import tokenizer_folder

    return load_tokenizer(tokenizer_folder(reader.model, "judge.reader.model", reader.revision), "judge.reader.model")


def read_prompt(config: JudgeConfig, section: str = "judge") -> str:
    """The prompt of a judge: the recipe's, its file's, the published one that the judge was trained on, or the project's own.

    Args:
        config: of the judge.
        section: dotted section of the recipe, for messages.

    Raises:
        InputError: it cannot be read, or lacks a slot for the goal or the answer.
    """
    field = f"{section}.prompt" if config.prompt is not None else f"{section}.prompt_path"
    if config.prompt is None and config.prompt_path is None and config.name not in PUBLISHED:
        return READERS[config.name][0] or ""
    where = config.prompt_path or PUBLISHED.get(config.name, "")
    template = config.prompt if config.prompt is not None else _read(where, field)
    lacking = missing_slot(template)
    if lacking:
        raise InputError(field, config.prompt or where, f"has no {lacking}: write it where that text goes")
    return template


def _read(path: str, field: str) -> str:
    if path.startswith(PUBLIC):
        return public_text(path, field)
    try:
        return Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(field, path, f"cannot be read ({type(error).__name__}): give a text file") from None
