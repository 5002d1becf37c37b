"""What tests over real sockets start from: `network` makes a `Network`, after which nothing may be left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq.asyncio

from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Hello
from codream_protocols.server import ServerEpoch
from secure_codream.threats import loopback
from secure_codream.threats.federation import snapshot
from secure_codream.threats.loopback import honest, transport_keys


class Network(loopback.Network):
    snapshot = staticmethod(snapshot)

    def assert_sums_are_right(self) -> None:
        """Every revealed sum is the plain sum over its survivors, bit for bit."""
        assert self.sums and not self.wrong_sums()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Network]]:
    """Makes a `Network`; afterwards every ZeroMQ context, so every socket, is closed."""
    contexts: list[Any] = []
    original = zmq.asyncio.Context

    def context() -> Any:
        contexts.append(original())
        return contexts[-1]

    monkeypatch.setattr(zmq.asyncio, "Context", context)

    def make(*arguments: Any, **options: Any) -> Network:
        made = Network(*arguments, **options)
        monkeypatch.setattr(ServerEpoch, "receive", made.checked_receive)
        return made

    yield make
    assert all(context.closed for context in contexts)


@pytest.fixture
def parts() -> SimpleNamespace:
    """What attack tests build with."""
    return SimpleNamespace(
        honest=honest, transport_keys=transport_keys, hello=lambda roster: Hello((PROTOCOL,), roster.hash)
    )
