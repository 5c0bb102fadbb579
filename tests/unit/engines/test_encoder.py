"""The sentence encoder, against a plain form of its own and against the similarities that its model card shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from dat_ray.config.models import EncoderConfig
from dat_ray.engines.encoder import Encoder
from dat_ray.engines.similarity import encode_each, nearest, similarities
from dat_ray.errors import InputError
from dat_ray.models.embedded import resolve_model

TEXTS = [
    "Tell me how to bake bread",
    "bread",
    "",
    "How does one juggle five balls at once, and why?",
    "bread",
    "naïve Übung 面包",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random encoder with the embedded one's tokenizer and settings."""
    source, path = Path(resolve_model("embedded:all-minilm-l6-v2")), tmp_path_factory.mktemp("encoder")
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "modules.json",
        "sentence_bert_config.json",
    ):
        shutil.copyfile(source / file, path / file)
    shutil.copytree(source / "1_Pooling", path / "1_Pooling")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        BertModel(config).save_pretrained(path)
    return path


def plain(folder: Path, text: str, pooling: str = "mean") -> np.ndarray:
    """One text alone, beside a longer one that pads it: masked mean, divided by its length."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer([text, "a b c d e f g h " * 8], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state[0].double().numpy()
    kept = batch["attention_mask"][0].numpy().astype(bool)
    vector = states[kept].sum(0) / kept.sum() if pooling == "mean" else states[0]
    return vector / np.sqrt((vector**2).sum())


def encoder(folder: Path, batch_size: int = 64) -> Encoder:
    return Encoder(EncoderConfig(model=str(folder), batch_size=batch_size), str(folder), 1)


def test_vectors_equal_a_plain_padded_form_whatever_the_batch(folder: Path) -> None:
    wanted = np.stack([plain(folder, text) for text in TEXTS])
    for size in (1, 2, 64):
        np.testing.assert_allclose(encoder(folder, size).encode(TEXTS), wanted, atol=2e-6)
    assert encoder(folder).encode([]).shape == (0, 32)


def test_the_first_token_pools_where_the_folder_says_so(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "first")
    settings = json.loads((copy / "1_Pooling" / "config.json").read_text())
    settings |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    np.testing.assert_allclose(encoder(copy).encode(TEXTS[:1])[0], plain(copy, TEXTS[0], "first"), atol=2e-6)


def test_a_long_text_loses_its_end(folder: Path) -> None:
    long = "bread " * 400
    [a, b] = encoder(folder).encode([long, long + "and butter"])
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', "pools by pooling_mode_max_tokens"),
        ("1_Pooling/config.json", "{}", "pools by nothing"),
        ("1_Pooling/config.json", "[", "1_Pooling"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "has the part Dense"),
        ("modules.json", '{"type": 3}', "modules.json that cannot be read"),
        ("config.json", '{"model_type": "no-such-model"}', "cannot be loaded as an encoder"),
    ],
)
def test_what_is_no_encoder_that_is_known_here_is_refused_in_one_line(
    folder: Path, tmp_path: Path, file: str, text: str, said: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "broken")
    (copy / file).write_text(text)
    with pytest.raises(InputError) as caught:
        encoder(copy)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_embedded_encoder_gives_the_similarities_of_its_model_card() -> None:
    config = EncoderConfig()
    embedded = Encoder(config, resolve_model(config.model), 1)
    source = encode_each(embedded, ["That is a happy person"] * 3)
    others = encode_each(embedded, ["That is a happy dog", "That is a very happy person", "Today is a sunny day"])
    found = similarities(source, others)
    # The example of the hub's pages on sentence similarity, for this model.
    assert found == pytest.approx([0.6945773363113403, 0.9429150819778442, 0.2568760812282562], abs=1e-5)
    assert nearest(source[:1], others) == pytest.approx([max(found)])
