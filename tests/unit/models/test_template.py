from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import transformers.utils.chat_template_utils as library

from dat_ray.config.models import TemplateConfig
from dat_ray.errors import InputError
from dat_ray.models.chat import ChatFormat, prompt_segments
from dat_ray.models.template import ChatTemplate
from tests.unit.models.tiny import CHATML, make_tokenizer

# Of Llama 3.2's form (the clock, unless the library has none) and 3.1's (a variable with a default).
CLOCK = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}<|im_start|>system\nToday Date: {{ date_string }}"
    "<|im_end|>\n" + CHATML
)
VARIABLE = (
    "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}<|im_start|>system\n"
    "Today Date: {{ date_string }}<|im_end|>\n" + CHATML
)
# Inside a function of the template, and with the hour.
IN_A_MACRO = "{% macro today() %}{{ strftime_now('%Y-%m-%d %H:%M') }}{% endmacro %}{{ today() }}\n" + CHATML
# Of Qwen 3's form: a finished turn has a block of thoughts, empty where there are none.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Of DeepSeek R1's: thoughts are begun for the model, and gone from a finished turn.
BEGUN_THOUGHTS = CHATML.replace("assistant\n", "assistant\n<think>\n")
# As in a file with line breaks and indents for its readers, which Jinja writes too.
LAID_OUT = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n", "{% if add_generation_prompt %}<|im_start|>a:")
LAID_OUT = LAID_OUT.replace("{{ message['role'] }}\n", "{{ message['role'][0] }}:{{ '\n    ' if loop.index == 2 }}")
SHORT = CHATML.replace("['role'] }}\n", "['role'] }}:\n").replace("assistant\n", "assistant")
UNOPENED = CHATML.split("{% if add_generation_prompt %}")[0]
DEAF = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"


def template(text: str, **settings: object) -> ChatTemplate:
    return ChatTemplate(make_tokenizer(text), TemplateConfig(**settings))


class Day(datetime):
    """The library's clock, set by hand."""

    today_is: Day

    @classmethod
    def now(cls, tz: object = None) -> Day:
        return cls.today_is


@pytest.mark.parametrize("text", [CLOCK, IN_A_MACRO])
def test_a_template_that_reads_the_clock_is_told_the_date_of_the_recipe(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "datetime", Day)
    rendered, plain, ids = [], [], []
    for year in (2031, 2032):
        monkeypatch.setattr(Day, "today_is", Day(year, 5, 6, 7, 8, tzinfo=UTC), raising=False)
        tokenizer = make_tokenizer(text)
        rendered.append(ChatTemplate(tokenizer).prompt("hi"))
        ids.append(ChatFormat(tokenizer).prompt_ids("hi"))
        plain.append(tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False))
    assert str(plain[0]) != plain[1], "the clock was moved"
    assert rendered[0] == rendered[1]
    assert ids[0] == ids[1]
    assert ("26 Jul 2024" if text == CLOCK else "2024-07-26 00:00") in rendered[0]
    told = template(text, template_date="2025-01-02").prompt("hi")
    assert ("02 Jan 2025" if text == CLOCK else "2025-01-02 00:00") in told


@pytest.mark.parametrize("text", [CLOCK, VARIABLE])
def test_a_date_string_is_an_option(text: str) -> None:
    assert "Today Date: 26 Jul 2024<" in template(text).prompt("hi")
    assert "Today Date: 1 May 2025<" in template(text, template_options={"date_string": "1 May 2025"}).prompt("hi")


def test_options_reach_the_template() -> None:
    text = CHATML + "{% if add_generation_prompt %}{{ tone['voice'] }}{{ ranks | join(',') }}{% endif %}"
    assert template(text, template_options={"tone": {"voice": "plain"}, "ranks": [1, 2]}).prompt("hi").endswith("plain1,2")


def test_an_option_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"target.template_options = 'enable_thinkin': the chat template reads no variable"):
        template(THINKING, template_options={"enable_thinkin": False})


def test_a_thinking_template_is_served_with_thoughts_switched_off() -> None:
    tokenizer = make_tokenizer(THINKING)
    with pytest.raises(InputError, match=r"target.model = '': its chat template has .*<think>.* set template_options to"):
        ChatFormat(tokenizer)
    chat = ChatFormat(tokenizer, TemplateConfig(template_options={"enable_thinking": False}))
    turn = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Sure, here"}]
    whole = tokenizer.apply_chat_template(turn, return_dict=False)
    ours = [*chat.prompt_ids("How are you?"), *chat.response_ids("Sure, here")]
    assert [*ours, *tokenizer("<|im_end|>\n").input_ids] == whole
    assert tokenizer.decode(chat.segments()[1]).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_sampler_that_writes_its_own_responses_takes_a_thinking_template() -> None:
    tokenizer = make_tokenizer(THINKING)
    before, between = prompt_segments(tokenizer)
    assert (tokenizer.decode(before), tokenizer.decode(between)) == (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )


@pytest.mark.parametrize(
    ("text", "settings", "problem"),
    [
        (
            BEGUN_THOUGHTS,
            {},
            "has '' before a response where its generation prompt has '<think>.*use a model that does not think",
        ),
        (
            THINKING.replace("is false", "is true"),
            {"template_options": {"enable_thinking": False}},
            "has '<think>.*use a model that does not think, or give a template without in chat_template$",
        ),
        (UNOPENED, {}, "has '<|im_start|>assistant.n' before a response where its .* has '': give one that opens"),
        (LAID_OUT, {}, r"has '.n    ' before a response where its .* has '': give one that opens"),
        (SHORT, {}, "has ':.n' before a response where its .* has '': give one that opens the assistant's turn"),
        (DEAF, {}, "does not write an assistant's message as it is"),
        (
            CHATML.replace("|>{{ message['role'] }}\n", "|>{{ loop.index }}:"),
            {},
            "has '2:' before a response where .*give one that opens the",
        ),
    ],
)
def test_what_precedes_a_response_must_be_the_generation_prompt(text: str, settings: dict, problem: str) -> None:
    problem = problem.replace("|", r"\|")
    with pytest.raises(InputError, match=f"target.model = '': its chat template {problem}") as refused:
        ChatFormat(make_tokenizer(text), TemplateConfig(**settings))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=rf"target.chat_template = .*: {problem}"):
        ChatFormat(make_tokenizer(None), TemplateConfig(chat_template=text, **settings))


def test_whitespace_that_the_model_writes_itself_is_the_responses() -> None:
    # The generation prompt ends before the line break that a finished turn has there.
    tokenizer = make_tokenizer(CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant{%"))
    chat = ChatFormat(tokenizer)
    ids = chat.response_ids("Sure, here")
    assert tokenizer.decode(chat.segments()[1]).endswith("<|im_start|>assistant")
    assert tokenizer.decode(ids) == "\nSure, here"
    assert chat.response_text(ids) == "Sure, here"
    assert chat.response_ids("") == [], "nothing is begun"


FAILING = {
    "type": "{{ 1 + messages }}",
    "undefined": "{{ nothing.here.at_all }}",
    "security": "{{ messages.append(1) }}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "division": "{{ 1 // 0 }}",
    "overflow": "{{ range(1000000000) | list }}",
    "syntax": "{% for m messages %}{% endfor %}",
    "filter": "{{ messages | no_such_filter }}",
    "key": "{{ '%(a)s' % {} }}",
    "raised": "{{ raise_exception('user and assistant\nmust alternate') }}",
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("system", [None, "Be good."])
def test_a_template_that_fails_is_blamed_in_one_line(name: str, system: str | None) -> None:
    for settings, tokenizer in (
        (TemplateConfig(system_prompt=system), make_tokenizer(FAILING[name])),
        (TemplateConfig(system_prompt=system, chat_template=FAILING[name]), make_tokenizer(None)),
    ):
        field = "target.chat_template" if settings.chat_template else "target.model"
        with pytest.raises(InputError, match=f"^{field} = .*fails .*give a working one in target.chat_template") as refused:
            ChatFormat(tokenizer, settings)
        assert "\n" not in str(refused.value)
        assert refused.value.exit_code == 2


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ 1 + messages }}{% endif %}" + CHATML
MODES = "{% if mode is defined and mode != 'a' %}{{ raise_exception('no such mode') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (NO_SYSTEM, {"system_prompt": "Be good."}, "target.system_prompt = 'Be good.': the chat template refuses it .*leave it"),
        (MODES, {"template_options": {"mode": "b"}}, r"target.template_options = \{'mode': 'b'\}: .*refuses them .no such mode"),
        (
            MODES,
            {"template_options": {"mode": "b"}, "system_prompt": "Be good."},
            r"target.template_options = \{'mode': 'b'\}: .*refuses them .no such mode",
        ),
    ],
)
def test_a_setting_is_blamed_where_the_template_renders_without_it(text: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatFormat(make_tokenizer(text), TemplateConfig(**settings))


def test_a_system_prompt_that_the_template_drops_is_refused() -> None:
    text = CHATML.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")
    assert ChatFormat(make_tokenizer(text)).prompt_ids("hi")
    with pytest.raises(InputError, match=r"target.system_prompt = 'Be good.': the chat template leaves it out"):
        ChatFormat(make_tokenizer(text), TemplateConfig(system_prompt="Be good."))


def test_a_template_that_the_tokenizer_lacks_comes_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template: use an instruct model, or give its template in target.chat_t"):
        ChatFormat(make_tokenizer(None))
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML, encoding="utf-8")
    settings = TemplateConfig(chat_template=str(file))
    assert ChatFormat(make_tokenizer(None), settings).prompt_ids("hi") == ChatFormat(make_tokenizer()).prompt_ids("hi")
    file.unlink()
    assert TemplateConfig.model_validate_json(settings.model_dump_json()) == settings, "the text travels, not the name"
