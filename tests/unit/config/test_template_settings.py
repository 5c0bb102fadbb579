"""What a recipe may say about a model's chat template."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from dat_ray.config.loading import difference, fingerprint, load_recipe
from dat_ray.config.models import RESERVED_OPTIONS, TargetConfig
from dat_ray.errors import InputError


def test_what_the_library_takes_for_itself_is_reserved() -> None:
    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    named = {name for name in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES if name.endswith("_token")}
    assert taken | named | {"messages", "raise_exception", "strftime_now"} <= RESERVED_OPTIONS


@pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
def test_a_reserved_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"target.template_options = .*: {name} is not for a recipe to set as an option: ") as no:
        load_recipe("demo", [f"target.template_options.{name}=1"])
    assert ("set template_date" in str(no.value)) == (name == "strftime_now")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target.template_options={'a b': 1}", "target.template_options = .*'a b' is no name of a template's variable"),
        ("target.template_options=[1]", r"target.template_options = \[1\]: is no mapping"),
        ("target.template_options={day: 2024-01-01}", "target.template_options.day = datetime.date.*: .*JSON"),
        ("target.template_date=20240101", "target.template_date = 20240101: is a number, not a date: write YYYY-MM-DD"),
        ("target.template_date=soon", "target.template_date = 'soon': .*YYYY-MM-DD"),
        ("target.template_date=2024-13-01", "--set = 'target.template_date=2024-13-01': the value is not readable as YAML"),
        (
            "target.chat_template=no/such.jinja",
            "target.chat_template = 'no/such.jinja': cannot be read .FileNotFoundError",
        ),
        ("target={model: m, template: none, chat_template: '{{ 1 }}'}", "chat_template is read only with `template: chat`"),
        ("target={model: m, template: none, template_options: {a: 1}}", "template_options is read only with `template: chat`"),
        (
            "evaluation.attacker={model: m, backend: endpoint, endpoint: {url: 'http://h'}, chat_template: '{{ 1 }}'}",
            "chat_template is up to the server",
        ),
        (
            "evaluation.attacker={model: m, backend: endpoint, endpoint: {url: 'http://h'}, template_date: 2025-01-01}",
            "template_date is up to the server",
        ),
    ],
)
def test_a_bad_setting_is_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        load_recipe("demo", [override])
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_file_without_a_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jinja").write_text("Hello", encoding="utf-8")
    with pytest.raises(InputError, match="holds no Jinja template"):
        load_recipe("demo", [f"target.chat_template={tmp_path / 'empty.jinja'}"])


@pytest.mark.parametrize("section", ["target", "evaluation.attacker"])
def test_settings_change_the_fingerprint_and_defaults_do_not(section: str, tmp_path: Path) -> None:
    base = [] if section == "target" else ["evaluation.attacker={model: m}"]
    plain = load_recipe("demo", base)
    written = [f"{section}.template_options={{}}", f"{section}.template_date=2024-07-26", f"{section}.chat_template=null"]
    assert fingerprint(load_recipe("demo", [*base, *written])) == fingerprint(plain)
    files = [tmp_path / "one.jinja", tmp_path / "two.jinja"]
    for file in files:
        file.write_text(f"{{{{ messages }}}}{file.name}", encoding="utf-8")
    settings = [
        f"{section}.template_options={{enable_thinking: false}}",
        f"{section}.template_options={{enable_thinking: true}}",
        f"{section}.template_date=2024-07-27",
        *(f"{section}.chat_template={file}" for file in files),
    ]
    changed = [load_recipe("demo", [*base, setting]) for setting in settings]
    assert len({fingerprint(recipe) for recipe in [plain, *changed]}) == 6
    for recipe, setting in zip(changed, settings, strict=True):
        assert difference(plain, recipe)[0].startswith(setting.split("=")[0])
        stored = tmp_path / "stored.yaml"
        stored.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        again = load_recipe(str(stored))
        assert (again, fingerprint(again)) == (recipe, fingerprint(recipe))


def test_a_templates_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    config = TargetConfig(model="m", chat_template=str(file))
    file.unlink()
    assert TargetConfig.model_validate_json(config.model_dump_json()).chat_template == "{{ messages }}"
