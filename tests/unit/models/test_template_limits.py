"""A chat template ends, and writes what transformers' own rendering writes."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from dat_ray.errors import InputError
from dat_ray.models.template import ChatTemplate
from dat_ray.models.template_limits import MAX_TEMPLATE, LimitedTemplate, TemplateLimit
from tests.unit.models.tiny import CHATML, make_tokenizer

MESSAGES = [{"role": "user", "content": "Hi 大 {{ x }}"}, {"role": "assistant", "content": "<b>Ok</b>"}]
GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x }}"
LONG = "{% set s = 'a\n' * 100000 %}"

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endfor %}",
    "a loop's condition": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "a long range": "{% for a in range(10**9) %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "power": "{{ 9**(9**9) }}",
    "products": GROW % ("7", "ns.x * ns.x"),
    "repeated text": "{{ 'a' * 10**10 }}",
    "joined text": GROW % ("'ab'", "ns.x ~ ns.x"),
    "added text": GROW % ("'ab'", "ns.x + ns.x"),
    "lists": GROW % ("['ab']", "ns.x + ns.x"),
    "nested lists": GROW % ("['ab']", "[ns.x, ns.x]"),
    "nested tuples": GROW % ("['ab']", "(ns.x, ns.x)"),
    "nested mappings": GROW % ("['ab']", "{'a': ns.x, 'b': ns.x}"),
    "nested namespaces": GROW % ("'ab'", "namespace(a=ns.x, b=ns.x)"),
    "a block's text": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set b %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = b %}{% endfor %}{{ ns.x }}",
    "a filter's text": GROW % ("'ab'", "[ns.x, ns.x]|join"),
    "a filter's width": "{{ 'x'|center(10**9) }}",
    "a method's width": "{{ 'x'.ljust(10**9) }}",
    "a format's width": "{{ '%1000000000d' % 1 }}",
    "a format's star": "{{ '%*d' % (10**9, 1) }}",
    "a method's format": "{{ '{:1000000000}'.format(1) }}",
    "a format in a format": "{{ '{:{}}'.format(1, 10**9) }}",
    "replaced text": LONG + "{{ s.replace('a', s) }}",
    "a filter that replaces": LONG + "{{ s|replace('a', s) }}",
    "separators": LONG + "{{ (s|list)|join(s) }}",
    "indents": LONG + "{{ s|indent(99999) }}",
    "filters in a row": "{{ range(99999)|map('string')|join|length }}" * 300,
    "length": "x" * (MAX_TEMPLATE + 1),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_without_end_ends(kind: str) -> None:
    with pytest.raises(TemplateLimit):
        LimitedTemplate(ENDLESS[kind]).render(messages=MESSAGES)


def test_a_user_reads_one_line_about_it() -> None:
    with pytest.raises(InputError, match=r"its chat template fails \(takes more than 200,000 steps\): give") as caught:
        ChatTemplate(make_tokenizer(CHATML + ENDLESS["loops"])).prompt("hi")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ " + "(" * 900 + "1" + ")" * 900 + " }}"])
def test_recursion_is_the_template_s_error(text: str) -> None:
    with pytest.raises(InputError, match="its chat template fails"):
        ChatTemplate(make_tokenizer(text)).prompt("hi")


@pytest.mark.parametrize(
    "text",
    [
        CHATML,
        "{% if false %}{{ 9**(9**3) }}{% endif %}{{ 2**10 }}{{ 7 % 4 }}{{ 'ab' * 3 }}{{ [1] + [2] }}{{ '%s-%d' % ('a', 3) }}",
        "{{ messages|tojson }}{{ messages[0]|tojson(indent=2) }}{{ '{:>5}|{}'.format('a', 2) }}{{ 'a' ~ 1 ~ none }}",
        "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ loop.last }}{{ m.content|trim|upper }}{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% else %}none{% endfor %}{% for x in [] %}{% else %}e{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{% macro f(x, y=2) %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}{% call f(3) %}c{% endcall %}",
        "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n ~ ns.seen }}",
        "{% generation %}a{% endgeneration %}  {%- set x = ('a', 'b') -%}  {% set p, q = x %}{{ p ~ q }}{{ {'a': (1, 2)} }}",
        "  {% if messages %}\n  a\n  {% endif %}\nb {# n #}{% filter upper %}x{% endfilter %}{% set t %}z{% endset %}{{ t }}",
        "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}{{ 'a,b'.split(',')|join }}",
    ],
)
def test_what_ends_is_written_as_transformers_writes_it(text: str) -> None:
    variables = {"add_generation_prompt": True, "bos_token": "<s>"}
    expected = render_jinja_template([MESSAGES], chat_template=text, **variables)[0][0]
    assert LimitedTemplate(text).render(messages=MESSAGES, tools=None, documents=None, **variables) == expected


def test_a_long_conversation_is_rendered() -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "word " * 2000} for i in range(500)]
    text = LimitedTemplate(CHATML).render(messages=turns, add_generation_prompt=True)
    assert text.count("word") == 1_000_000


def test_the_sandbox_stays_closed() -> None:
    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}"):
        try:
            assert LimitedTemplate(text).render(messages=[]) == ""
        except TemplateError:
            continue
