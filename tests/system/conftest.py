"""What tests over real sockets start from: `network` makes a `Network`, after which nothing may be left."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Hello
from secure_codream.simulation import sockets as loopback
from secure_codream.simulation.snapshots import snapshot
from secure_codream.simulation.sockets import honest, transport_keys
from tests.system.scenarios import MODES


class Network(loopback.Network):
    snapshot = staticmethod(snapshot)

    def assert_sums_are_right(self) -> None:
        """Every sum is the plain sum over its survivors, bit for bit."""
        assert self.sums and not self.wrong_sums()


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network() -> Callable[..., Network]:
    """Makes a `Network`; its `run` fails if a task or a ZeroMQ context is left."""
    return Network


@pytest.fixture
def parts() -> SimpleNamespace:
    """What attack tests build with."""

    def hello(net: Any, **changes: Any) -> Hello:
        usual = {
            "versions": (PROTOCOL,),
            "charter": net.charter.digest,
            "head": net.charter.first_head,
            "epoch": 0,
            "plan": b"",
            "sums": 0,
        }
        return Hello(**{**usual, **changes})

    return SimpleNamespace(honest=honest, transport_keys=transport_keys, hello=hello)
