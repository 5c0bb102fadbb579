"""Renders conversations with a model's chat template, the same on every day and every machine.

Whatever goes wrong inside a template becomes one line that blames the setting at fault: the system prompt or the options
where the template renders without them, the template otherwise.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from datetime import datetime, time
from typing import Any

from transformers import PreTrainedTokenizerBase

from dat_ray.config.models import TemplateConfig
from dat_ray.errors import InputError, one_line
from dat_ray.models.template_limits import LimitedTemplate

Message = dict[str, str]
_MARK = "dat-system-prompt-mark"


class ChatTemplate:
    """The chat template of one model, with a recipe's settings.

    Args:
        tokenizer: of the model; its template is used unless the settings bring another.
        settings: system prompt, template, its options and its date.
        section: of the recipe, to name in errors.

    Attributes:
        text: of the template.
        options: its further variables.

    Raises:
        InputError: no chat template, an option it does not read, or a system prompt that it refuses or leaves out.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: TemplateConfig | None = None, section: str = "target"
    ) -> None:
        self._tokenizer, self._settings, self._section = tokenizer, settings or TemplateConfig(), section
        self.text = self._settings.chat_template or self._own_text()
        self.options = self._settings.template_options
        for option in self.options:
            if not re.search(rf"\b{option}\b", self.text):
                remedy = "the chat template reads no variable of this name: correct it or leave it out"
                raise InputError(f"{section}.template_options", option, remedy)
        if (self._settings.system_prompt or "").strip() and _MARK not in self._checked(_MARK, _messages(_MARK, "Hi"), True):
            remedy = "the chat template leaves it out without a word: leave it out of the recipe too"
            raise InputError(f"{section}.system_prompt", self._settings.system_prompt, remedy)

    def prompt(self, user: str) -> str:
        """A user message up to where the model answers: the generation prompt included."""
        system = self._settings.system_prompt
        return self._checked(system, _messages(system, user), True)

    def turn(self, user: str, response: str) -> str:
        """A user message with its answer, as a finished conversation has them."""
        system = self._settings.system_prompt
        return self._checked(system, [*_messages(system, user), {"role": "assistant", "content": response}], False)

    def dialog(self, turns: Sequence[str]) -> str:
        """Turns of the user and of the model, the user's first and last, with the generation prompt behind them."""
        system, roles = self._settings.system_prompt, ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns[1:], 1)]
        return self._checked(system, [*_messages(system, turns[0]), *messages], True)

    def conversation(self, messages: list[Message]) -> str:
        """Messages as they are, without the system prompt of the settings, and the generation prompt behind them."""
        return self._checked(None, messages, True)

    def error(self, problem: str) -> InputError:
        """An error that blames the template: the recipe's own, or the model's.

        Args:
            problem: what it does, and the remedy.
        """
        if self._settings.chat_template is not None:
            return InputError(f"{self._section}.chat_template", self._settings.chat_template, problem)
        return InputError(f"{self._section}.model", self._tokenizer.name_or_path, f"its chat template {problem}")

    def _own_text(self) -> str:
        try:
            text = self._tokenizer.get_chat_template()
        except ValueError:  # none, or several without a default
            text = None
        if not text:
            remedy = f"has no chat template: use an instruct model, or give its template in {self._section}.chat_template"
            raise InputError(f"{self._section}.model", self._tokenizer.name_or_path, remedy)
        return str(text)

    def _checked(self, system: str | None, messages: list[Message], answer_next: bool) -> str:
        options = self.options
        try:
            return self._apply(messages, answer_next, options)
        except Exception as error:  # a template is a program of somebody else's: it can fail in any way
            problem = (one_line(str(error)) or type(error).__name__)[:200]
            plain = [message for message in messages if message["role"] != "system"]
            if system is not None and self._renders(plain, answer_next, options):
                remedy = f"the chat template refuses it ({problem}): leave it out"
                raise InputError(f"{self._section}.system_prompt", self._settings.system_prompt, remedy) from error
            if options and self._renders(messages, answer_next, {}):
                remedy = f"the chat template refuses them ({problem}): correct them or leave them out"
                raise InputError(f"{self._section}.template_options", options, remedy) from error
            remedy = f"fails ({problem}): give a working one in {self._section}.chat_template, or use another model"
            raise self.error(remedy) from error

    def _renders(self, messages: list[Message], answer_next: bool, options: dict[str, Any]) -> bool:
        try:
            self._apply(messages, answer_next, options)
        except Exception:
            return False
        return True

    def _apply(self, messages: list[Message], answer_next: bool, options: dict[str, Any]) -> str:
        # As `apply_chat_template` does it, by whose names the variables go.
        variables = {
            **self._tokenizer.special_tokens_map,
            # Stands before the library's function of the same name, which reads the clock.
            "strftime_now": datetime.combine(self._settings.template_date, time()).strftime,
            **options,
        }
        return self._program.render(messages=messages, tools=None, documents=None, add_generation_prompt=answer_next, **variables)

    @functools.cached_property
    def _program(self) -> LimitedTemplate:
        return LimitedTemplate(self.text)


def _messages(system: str | None, user: str) -> list[Message]:
    message = {"role": "user", "content": user}
    return [message] if system is None else [{"role": "system", "content": system}, message]
