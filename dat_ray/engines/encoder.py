"""A sentence encoder: texts become unit vectors whose inner product says how alike their meanings are.

Any folder or hub id of the sentence-transformers kind that pools by mean or by its first token, such as all-MiniLM-L6-v2
(Reimers and Gurevych 2019, arXiv 1908.10084). torch and transformers alone; nothing of the folder's code is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

from dat_ray.config.models import EncoderConfig
from dat_ray.data.stored import model_settings
from dat_ray.errors import InputError
from dat_ray.json_text import JsonError, parse_json
from dat_ray.models.loading import DTYPES, first_line, load_tokenizer, model_files
from dat_ray.models.weight_files import weight_files

FIELD = "encoder.model"
# Of a folder that does not say how many tokens it reads.
MAX_TOKENS = 512
_POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
# Parts of a sentence-transformers folder that this class does.
_KNOWN_PARTS = ("Transformer", "Pooling", "Normalize")

Pooling = Literal["mean", "first"]


class Encoder:
    """One encoder in torch.

    Args:
        config: of the encoder.
        folder: of `resolve_model`, or a hub id.
        threads: of torch on a CPU.

    Attributes:
        name: as the recipe names it.

    Raises:
        InputError: no encoder, or one with a part that is not known here.
    """

    def __init__(self, config: EncoderConfig, folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.name, self._batch_size = config.model, config.batch_size
        files = model_files(folder, FIELD)
        self._pooling = pooling_of(files, config.model)
        weight_files(str(files), FIELD)
        disable_progress_bar()
        try:
            self._model = AutoModel.from_pretrained(
                str(files), dtype=DTYPES[config.dtype], use_safetensors=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError, ImportError) as error:
            raise InputError(FIELD, config.model, f"cannot be loaded as an encoder ({first_line(error)})") from error
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = load_tokenizer(str(files), FIELD)
        self._max_tokens = max_tokens_of(files, getattr(self._model.config, "max_position_embeddings", MAX_TOKENS))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of texts; a text longer than the model reads loses its end.

        Texts of one length in tokens go through together, so that none is padded and a row does not depend on its company
        beyond the last digits of float32.
        """
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens).input_ids if texts else []
        out = np.zeros((len(rows), self._model.config.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        start = 0
        while start < len(order):
            length = len(rows[order[start]])
            end = start
            while end < len(order) and end - start < self._batch_size and len(rows[order[end]]) == length:
                end += 1
            out[order[start:end]] = self._vectors([rows[i] for i in order[start:end]]).cpu().numpy()
            start = end
        return out

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids = torch.tensor(rows, device=self._model.device)
        states = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
        pooled = states.mean(1) if self._pooling == "mean" else states[:, 0]
        return torch.nn.functional.normalize(pooled, dim=-1)


def pooling_of(folder: Path, name: str) -> Pooling:
    """How a sentence-transformers folder pools; mean where it does not say.

    Raises:
        InputError: another way, two ways at once, or a part beside transformer, pooling and normalization.
    """
    parts = folder / "modules.json"
    if parts.is_file():
        unknown = [kind for kind in _parts(parts, name) if kind not in _KNOWN_PARTS]
        if unknown:
            raise InputError(FIELD, name, f"has the part {unknown[0]}, which is not known here: choose an encoder without it")
    settings = folder / "1_Pooling" / "config.json"
    if not settings.is_file():
        return "mean"
    tree = model_settings(settings, FIELD)
    chosen = [key for key, value in tree.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise InputError(
            FIELD, name, f"pools by {' and '.join(chosen) or 'nothing'}: choose one that pools by mean or first token"
        )
    return "mean" if _POOLING[chosen[0]] == "mean" else "first"


def _parts(path: Path, name: str) -> list[str]:
    """Class names of the parts that a folder's `modules.json` lists."""
    try:
        tree = parse_json(path.read_bytes())
        return [str(part["type"]).rpartition(".")[2] for part in tree]
    except (JsonError, OSError, LookupError, TypeError) as error:
        raise InputError(FIELD, name, f"has a modules.json that cannot be read ({first_line(error)})") from None


def max_tokens_of(folder: Path, positions: int) -> int:
    """Tokens that an encoder reads: what its sentence-transformers settings say, no more than it has positions."""
    path = folder / "sentence_bert_config.json"
    said = model_settings(path, FIELD).get("max_seq_length") if path.is_file() else None
    return min(said, positions) if isinstance(said, int) and said > 0 else positions
