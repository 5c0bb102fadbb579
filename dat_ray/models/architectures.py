"""What a model's configuration says that training, or a kind of attention, would leave out.

Training runs the decoder and the output head apart (`dat_ray.training.network`): what a family does to its logits after the
head would be missing, silently. So it is read here, before a run pays for anything, and refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dat_ray.errors import InputError
from dat_ray.models.weight_files import check_layers

# Fields by which the families of transformers change logits after the head, or hidden states just before it, with the
# values that change nothing besides None. Gemma 2 to 4, VaultGemma and NanoChat; RecurrentGemma; xLSTM; Cohere and MPT;
# Granite and HyperCLOVA X; Falcon-H1; MuseGlimmer; Inkling.
LOGIT_FIELDS: dict[str, tuple[float, ...]] = {
    "final_logit_softcapping": (),
    "logits_soft_cap": (),
    "output_logit_soft_cap": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "lm_head_multiplier": (1.0,),
    "output_multiplier": (1.0,),
    "logits_mup_width_multiplier": (1.0,),
}


def not_trainable(config: Any) -> str | None:
    """Why a model of this configuration (of transformers) cannot be trained here; None where it can.

    The sentence goes on after the model's name.
    """
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return "has an encoder beside its decoder, which training does not support"
    if text is not config:
        return "reads more than text, which training does not support"
    if getattr(text, "use_bidirectional_attention", None):
        return "lets its tokens see later ones (use_bidirectional_attention), so it predicts no next token"
    for field, neutral in LOGIT_FIELDS.items():
        value = getattr(text, field, None)
        if value is not None and value not in neutral:
            return f"changes its logits after the output head ({field} = {value}), which training does not support"
    return None


def attention_cap(config: Any) -> float | None:
    """The bound on a model's attention logits (Gemma 2), which `sdpa` leaves out and `eager` keeps."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None)


def check_trainable(path: str, field: str) -> str:
    """Reads a model's configuration and returns its architecture's name.

    Args:
        path: folder or hub id.
        field: recipe field to name in an error.

    Raises:
        InputError: no configuration that transformers can read, or an architecture that training would get wrong.
    """
    config = _read_configuration(path, field)
    name = (config.architectures or [type(config).__name__.removesuffix("Config")])[0]
    reason = not_trainable(config)
    if reason is not None:
        raise InputError(field, path, f"{name} {reason}: choose another model")
    return str(name)


def check_attacked_layers(path: str, field: str, layers: Sequence[str | int]) -> None:
    """Raises InputError where `training.attack.layers` has the number of a layer that a model does not have.

    Args:
        path: folder or hub id.
        field: recipe field of the model.
        layers: what is perturbed.
    """
    if any(isinstance(layer, int) for layer in layers):
        refuse_missing_layers(layers, _read_configuration(path, field).get_text_config().num_hidden_layers)


def refuse_missing_layers(layers: Sequence[str | int], count: int) -> None:
    """Raises InputError where `training.attack.layers` has a number beyond those of `count` decoder layers."""
    for layer in layers:
        if isinstance(layer, int) and layer >= count:
            raise InputError("training.attack.layers", layer, f"the model has layers 0 to {count - 1}: choose among them")


def _read_configuration(path: str, field: str) -> Any:
    # Imported late: the driver of a run reads a recipe's inputs before anything heavy is there.
    from transformers import AutoConfig

    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise InputError(field, path, "has no config.json: give the folder of a whole model")
        check_layers(path, field)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # what a library raises over a damaged file follows no rule
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(field, path, f"its configuration cannot be loaded ({first_line})") from error
