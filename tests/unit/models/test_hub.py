"""A hub that cannot be reached, or whose connection breaks, is one line wherever a hub is asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from huggingface_hub import constants

from dat_ray.config.models import SamplerConfig, TargetConfig
from dat_ray.errors import InputError
from dat_ray.models.identity import weights_of
from dat_ray.models.loading import model_files
from dat_ray.models.samplers import resolve_sampler
from dat_ray.models.served import served_model
from dat_ray.ops.model_checks import engine_check

MODEL = "some-org/no-such-model-of-a-test"


@pytest.fixture(params=["refuses", "hangs up"])
def broken_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub at a port where nobody listens, or where whoever listens closes each connection without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "refuses":
            server.close()
        else:
            threading.Thread(target=hang_up, args=(server,), daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        yield
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def hang_up(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            server.accept()[0].close()


@pytest.mark.usefixtures("broken_hub")
def test_doctor_says_that_the_hub_cannot_be_reached() -> None:
    for config in (TargetConfig(model=MODEL), SamplerConfig(model=MODEL)):
        found = engine_check("judge's reader", "judge.reader", config)
        assert not found.ok
        assert found.detail.startswith(f"judge.reader.model = '{MODEL}': cannot be downloaded from the hub (")
        assert found.detail.endswith("check the network, or give its folder")
        assert "\n" not in found.detail


@pytest.mark.usefixtures("broken_hub")
def test_a_download_that_breaks_is_an_input_error() -> None:
    for load in (model_files, resolve_sampler, served_model):
        with pytest.raises(InputError, match="cannot be downloaded") as caught:
            load(MODEL, "target.model")
        assert "\n" not in str(caught.value)
    assert weights_of(MODEL) is None
