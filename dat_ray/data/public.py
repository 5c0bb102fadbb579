"""Public data sets by name: fetched once from a pinned address, checked byte for byte, and kept in the cache.

`public:harmbench/adv_training_behaviors.csv` names one file of `FILES`, and `public:strongreject/judge_templates.json#harmbench`
one text of a JSON file. Where it comes from, in this order:

1. `$DAT_PUBLIC_DATA`, a folder that holds the files under their names: for a machine without a network;
2. the cache, `$DAT_CACHE/public` (`~/.cache/dat_ray/public`);
3. `$DAT_PUBLIC_MIRROR`, an address below which the files lie under their names; without it the pinned address.

A file is used only when its sha256 is the known one, and a download takes its place in the cache by rename: there is
never half a file. The requests in these sets are offensive by design; nothing of them is printed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dat_ray.cache import cache_root, check_cache
from dat_ray.errors import InputError
from dat_ray.json_text import parse_object
from dat_ray.progress import stage_line

PUBLIC = "public:"
FOLDER_VARIABLE, MIRROR_VARIABLE = "DAT_PUBLIC_DATA", "DAT_PUBLIC_MIRROR"
ATTEMPTS = 3
TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 16

_CODE_HOST = "https://raw.githubusercontent.com"
_CAT = f"{_CODE_HOST}/sophie-xhonneux/Continuous-AdvTrain/d4c4761aed2af8849d5eb7d19574d43e14d8a0ff/data"
_REFUSAL_DIRECTION = f"{_CODE_HOST}/andyrdt/refusal_direction/9d852fae1a9121c78b29142de733cb1340770cc3/dataset/raw"
_XSTEST = f"{_CODE_HOST}/paul-rottger/exaggerated-safety/d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d"
_HARMBENCH_LICENSE = "MIT, Center for AI Safety (HarmBench)"


@dataclass(frozen=True)
class PublicFile:
    """One file of a public data set.

    Attributes:
        url: pinned to a commit.
        sha256: of its bytes.
        license: and whose work it is.
    """

    url: str
    sha256: str
    license: str


FILES = {
    "harmbench/adv_training_behaviors.csv": PublicFile(
        f"{_CAT}/behavior_datasets/extra_behavior_datasets/adv_training_behaviors.csv",
        "73b38848f6a38e1ad3b67747fc9412c8bac114a12cedc2c26579a31387329f7a",
        _HARMBENCH_LICENSE,
    ),
    "harmbench/adv_training_targets.json": PublicFile(
        f"{_CAT}/optimizer_targets/extra_targets/adv_training_targets.json",
        "1d675653b74741f2528747dc05a25f6a3dba53e0ff6a3f863a1589506f598817",
        "MIT, Continuous-AdvTrain (arXiv 2405.15589)",
    ),
    "harmbench/adv_training_behaviors_safe_responses.csv": PublicFile(
        f"{_CAT}/safe_responses/adv_training_behaviors_safe_responses.csv",
        "0a8b547ae00f99396d09f07bda9cb0413b302d60b43df902caa77b66bfd6c5d8",
        "MIT, Continuous-AdvTrain (arXiv 2405.15589)",
    ),
    "harmbench/adv_training_behaviors_safe_responses_longer.csv": PublicFile(
        f"{_CAT}/safe_responses/adv_training_behaviors_safe_responses_longer.csv",
        "1ec4970cbc724eabcad6584133bf618fb55e134eae4508cce8adf63a26e73bab",
        "MIT, Continuous-AdvTrain (arXiv 2405.15589)",
    ),
    "harmbench/harmbench_behaviors_text_all.csv": PublicFile(
        f"{_CAT}/behavior_datasets/harmbench_behaviors_text_all.csv",
        "8d81accedd38eaaf8b760618622bb888417d1fd0c86eba65c427a16f1cbb4afc",
        _HARMBENCH_LICENSE,
    ),
    "harmbench/harmbench_targets_text.json": PublicFile(
        f"{_CAT}/optimizer_targets/harmbench_targets_text.json",
        "dedcac1f8c0108ca79e36589ef9693d5af916ed70878e60fb2c4c20482872e3f",
        _HARMBENCH_LICENSE,
    ),
    "jailbreakbench/jailbreakbench_harmful.csv": PublicFile(
        f"{_REFUSAL_DIRECTION}/jailbreakbench.csv",
        "45e9a8923b28f547bb372fbaa9af7df8b38c818a80ae50c3bab97704197ff516",
        "MIT, JailbreakBench (arXiv 2404.01318)",
    ),
    # Byte for byte dsbowen/strong_reject's strong_reject/eval_files/judge_templates.json, in a copy that is pinned.
    "strongreject/judge_templates.json": PublicFile(
        f"{_CODE_HOST}/BMPixel/safety-residual-space/81e737b9ea7253f80e70e39769f7420e58cea3a7/src/strong_reject/eval_files/"
        "judge_templates.json",
        "722d5aacfc6ae769d475d3cc8293b8f59fa03194cd5fa22be187e1591322350c",
        "MIT, Dillon Bowen (StrongREJECT, arXiv 2402.10260); its entry harmbench: MIT, Center for AI Safety (HarmBench)",
    ),
    "gptfuzzer/GPTFuzzer.csv": PublicFile(
        f"{_CODE_HOST}/sherdencooper/GPTFuzz/1eddeb565740ae311b5f4950492b011a6f866fe7/datasets/prompts/GPTFuzzer.csv",
        "e4abf25343b4adb991dd8ddc6189c038f26a6e74064d792cced69f56f71577fc",
        "MIT, GPTFuzzer (arXiv 2309.10253): 77 jailbreak templates collected from jailbreakchat.com",
    ),
    "xstest/xstest_prompts.csv": PublicFile(
        f"{_XSTEST}/xstest_prompts.csv",
        "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        "CC BY 4.0, Röttger et al. 2024 (XSTest)",
    ),
}


def public_file(spec: str, field: str) -> Path:
    """The local path of a public file, fetched if need be.

    Args:
        spec: `public:NAME`, NAME a key of `FILES`.
        field: the recipe's field that holds it, for messages.

    Raises:
        InputError: no such file, one with other bytes than the published ones, or one that is neither here nor reachable;
            the message says where it is published and how to give it by hand.
    """
    name = spec.removeprefix(PUBLIC)
    if name not in FILES:
        raise InputError(field, spec, f"no such public file: choose one of {', '.join(PUBLIC + known for known in FILES)}")
    entry = FILES[name]
    if folder := os.environ.get(FOLDER_VARIABLE):
        return _given(Path(folder).expanduser() / name, entry, spec, field)
    cached = cache_root().absolute() / "public" / entry.sha256[:16] / Path(name).name
    if cached.is_file() and _sha256(cached) == entry.sha256:
        return cached
    _download(entry, name, cached, spec, field)
    stage_line(f"{name}: fetched; license: {entry.license}; {entry.url}")
    return cached


def public_text(spec: str, field: str) -> str:
    """One text of a public JSON file, to the letter.

    Args:
        spec: `public:NAME#KEY`.
        field: the recipe's field that holds it, for messages.

    Raises:
        InputError: as `public_file`, no key behind the name, or a key that the file does not have.
    """
    name, _, key = spec.partition("#")
    path = public_file(name, field)
    texts = {entry: text for entry, text in parse_object(path.read_bytes()).items() if isinstance(text, str)}
    if key not in texts:
        raise InputError(field, spec, f"names no text of that file: write {name}#KEY, with KEY one of {', '.join(texts)}")
    return texts[key]


def _given(path: Path, entry: PublicFile, spec: str, field: str) -> Path:
    if not path.is_file():
        raise InputError(field, spec, f"{path} is missing: put the file there, published at {entry.url}")
    if _sha256(path) != entry.sha256:
        raise InputError(field, spec, f"{path} is not the published file (sha256 differs): replace it by {entry.url}")
    return path


def _download(entry: PublicFile, name: str, place: Path, spec: str, field: str) -> None:
    mirror = os.environ.get(MIRROR_VARIABLE)
    url = f"{mirror.rstrip('/')}/{name}" if mirror else entry.url
    check_cache(place.parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    problem = ""
    for _ in range(ATTEMPTS):
        # A name of its own for each attempt of each process: two runs that fetch at once don't write into one file.
        handle, scratch = tempfile.mkstemp(dir=place.parent, prefix="partial-")
        try:
            with os.fdopen(handle, "wb") as file:
                digest = _stream(url, file)
            if digest != entry.sha256:
                problem = f"{url} has other bytes than the published file (sha256 {digest[:12]}..., not {entry.sha256[:12]}...)"
                break
            os.replace(scratch, place)
            return
        # What a network does: refused, unknown host, time-out, cut off.
        except (OSError, http.client.HTTPException) as error:
            problem = f"{url} cannot be fetched ({type(error).__name__}: {error})"
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                break
        finally:
            Path(scratch).unlink(missing_ok=True)
    remedy = f"download {entry.url} by other means, put it at FOLDER/{name} and set {FOLDER_VARIABLE}=FOLDER, or give its path"
    raise InputError(field, spec, f"{problem}: {remedy}")


def _stream(url: str, file: BinaryIO) -> str:
    """Copies what an address serves; its sha256.

    Raises:
        OSError: among others where the connection ended before the announced length.
    """
    digest, count = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        announced = response.headers.get("Content-Length")
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            count += len(chunk)
            file.write(chunk)
    if announced is not None and count != int(announced):
        raise ConnectionError(f"cut off after {count} of {announced} bytes")
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
