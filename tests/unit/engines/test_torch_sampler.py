from __future__ import annotations

import pytest
import torch

from dat_ray.config.models import SamplerConfig
from dat_ray.engines.torch_sampler import TorchSampler
from dat_ray.errors import InputError


def test_compiled_layers_are_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"sampler\.compile = True: PyTorch sees no GPU here"):
        TorchSampler(SamplerConfig(model="any", backend="torch", compile=True), "nowhere", threads=1)
