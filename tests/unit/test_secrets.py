"""A secret in any spelling stays out of errors, rows, logs and records."""

from __future__ import annotations

import base64
import json
import logging
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from dat_ray.config.models import EndpointConfig, TargetConfig
from dat_ray.data.rundir import RunDir
from dat_ray.diagnosis import keep_traceback
from dat_ray.engines.base import Completion, Judgment
from dat_ray.engines.endpoint import EndpointModel, api_key
from dat_ray.errors import DatError, InputError, error_line
from dat_ray.generation.row_work import _describe
from dat_ray.runlog import RunLog
from dat_ray.secrets import BLANK, looks_secret, redact, secrets_in

KEY = "qX7+/w&'3\"é z=%"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "repr": repr,
    "json": json.dumps,
    "json in json": lambda key: json.dumps({"body": json.dumps({"key": key})}),
    "bytes": lambda key: repr(key.encode()),
    "url": lambda key: urllib.parse.quote(key, safe=""),
    "form": urllib.parse.quote_plus,
    "basic, short user": lambda key: base64.b64encode(f"a:{key}".encode()).decode(),
    "basic, other user": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    "basic, third user": lambda key: base64.b64encode(f"me:{key}:more".encode()).decode(),
    "quotes": lambda key: repr(f"'\"{key}"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["SOME_API_KEY", "PGPASSWORD", "DB_PASS", "MYSQL_PWD", "serviceApiKey", "GITHUB_PAT"])
def test_a_secret_is_blanked_in_every_spelling(name: str, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (KEY, f"{KEY}\n"):
        monkeypatch.setenv(name, key)
        written = f"failed with {SPELLINGS[spelling](key)} there"
        blanked = redact(written)
        assert BLANK in blanked
        assert all(part not in blanked for part in ("qX7", "qx7", "3\\", SPELLINGS[spelling](KEY)[4:-4]))
        assert blanked.startswith("failed with ")
        assert blanked.endswith(" there")
        assert redact(blanked) == blanked
        assert secrets_in(written) == [name]


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        ("postgres://me:hunter22@db/x", "postgres://[secret]@db/x"),
        ("https://ghp_0123456789abcdef0123@host/x.git", "https://[secret]@host/x.git"),
        ("GET https://host/v1?api_key=abc&max_tokens=5 failed", "GET https://host/v1?api_key=[secret]&max_tokens=5 failed"),
        ("https://host/x?X-Amz-Signature=0a1b&part=2", "https://host/x?X-Amz-Signature=[secret]&part=2"),
        ("next=https%3A%2F%2Fhost%3Ftoken%3Dabcdef", "next=https%3A%2F%2Fhost%3Ftoken%3D[secret]"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': '[secret]'}"),
        ("[(b'x-api-key', b'abc')]", "[(b'x-api-key', b'[secret]')]"),
        ("host=db password=abc dbname=x", "host=db password=[secret] dbname=x"),
        # Ordinary text.
        ("ssh://git@host/x, s3://bucket/key, me@host", None),
        ("Bearer authentication required; tokens: 512, pad_token = 5", None),
        ("https://host/v1?max_tokens=5&monkey=1", None),
    ],
)
def test_addresses_and_headers_are_blanked_whatever_the_environment(text: str, blanked: str | None) -> None:
    assert redact(text) == (blanked or text)


def test_a_password_in_the_address_of_any_variable_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me:pa%2Fss%40word@db/x")
    assert redact("auth failed for me with pa/ss@word (pa%2Fss%40word)") == "auth failed for me with [secret] ([secret])"


def test_ordinary_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SHORT_KEY": "row", "USE_TOKEN": "enabled", "TOKEN_ID": "151643000", "PASS_RATE": "generate", "MONKEY": "sampler",
        "SSH_KEY": str(Path(__file__)), "PAD_TOKEN": "<|endoftext|>", "TOKENIZERS_PARALLELISM": "false-ish",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    text = f"generate: 5 row failed, sampler enabled, id 151643000, <|endoftext|> {Path(__file__)} false-ish"
    assert redact(text) == text
    assert looks_secret(["judge.reader.endpoint", "apiKey"][-1])
    assert not any(map(looks_secret, ["mask_token", "mask_token_id", "max_tokens", "api_key_env", "PWD", "compass"]))


@pytest.mark.parametrize("value", ["sk-0123456789\nX-Other: 1", "sk-01234 56789", "sk-0123456789é", "sk-\x000123456789"])
def test_a_value_that_is_no_key_is_refused_without_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "\0" in value:
        value = value.replace("\0", "\x01")
    monkeypatch.setenv("ENDPOINT", value)
    with pytest.raises(InputError) as caught:
        api_key("ENDPOINT")
    assert "ENDPOINT" in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_a_key_with_a_line_break_at_its_end_is_sent_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN_NAME", "sk-0123456789\n")
    config = TargetConfig(
        model="m", backend="endpoint", endpoint=EndpointConfig(url="http://localhost:1/v1", api_key_env="PLAIN_NAME", retries=0)
    )
    model = EndpointModel(config)
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(401, text=f"bad key {request.headers['Authorization']}")

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(model, "_client", lambda: httpx.AsyncClient(transport=transport, headers=model._headers))
    error = model.complete(["hi"], 4)[0].error
    assert sent[0].headers["Authorization"] == "Bearer sk-0123456789"
    assert error is not None
    assert "bad key" in error
    assert "0123456789" not in error


def test_what_an_engine_says_is_blanked_before_it_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789\n")
    said = "Illegal header value b'Bearer sk-0123456789\\n'\nsecond line \x1b[2J"
    for error in (
        Completion("", 0, False, said).error,
        Judgment("unparsed", None, said).error,
        error_line(RuntimeError(said)),
        str(DatError(said)),
        str(InputError("target.model", said, said)),
    ):
        assert error is not None
        assert "0123456789" not in error
        assert error.isprintable()
    details = keep_traceback(str(tmp_path / "failure.txt"), RuntimeError(said))
    assert "details" in details
    assert "0123456789" not in (tmp_path / "failure.txt").read_text()
    with RunLog(RunDir(str(tmp_path))) as log:
        logging.getLogger("dat_ray").warning(said)
    assert "0123456789" not in Path(log.path).read_text()
    assert "Illegal header" in Path(log.path).read_text()


def test_a_row_s_error_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    assert _describe("judge", RuntimeError("refused sk-0123456789")) == "judge: RuntimeError: refused [secret]"


def test_a_long_text_without_a_secret_takes_no_time_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits in one run of 300,000: with a pattern that tries each of them as a beginning this would not end."""
    monkeypatch.setenv("SOME_TOKEN", "0123456789abcdef" * 4)
    text = "Ab9+" * 75_000
    assert redact(text) == text
    assert secrets_in(text) == []
