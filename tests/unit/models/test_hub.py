"""A hub that cannot be reached, or whose connection breaks, is one line wherever a hub is asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from huggingface_hub import constants

from dat_ray.errors import InputError
from dat_ray.models.identity import _commit
from dat_ray.models.loading import model_files
from dat_ray.models.samplers import _download
from dat_ray.ops.models import model_check

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
    found = model_check("target model", MODEL)
    assert not found.ok
    assert f"{MODEL}: the hub cannot be reached (" in found.detail
    assert "\n" not in found.detail
    assert found.remedy == "check the network, or give a folder"


@pytest.mark.usefixtures("broken_hub")
def test_a_download_that_breaks_is_an_input_error() -> None:
    for load in (model_files, _download):
        with pytest.raises(InputError, match="cannot be downloaded") as caught:
            load(MODEL, "target.model")
        assert "\n" not in str(caught.value)
    assert _commit(MODEL, "main") is None
