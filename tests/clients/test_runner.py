"""The client's runner alone: which computation belongs to which epoch. Its whole life is in tests/system."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np

from codream_clients import runner as module
from codream_clients.runner import ClientRunner
from codream_protocols.client import Compute


class FakeProtocol:
    """Holds a plan, and remembers what is provided."""

    def __init__(self) -> None:
        self.plan: Any = None
        self.provided: list[tuple[str, int, Any]] = []

    def provide(self, step: int, vector: Any) -> list[Any]:
        self.provided.append((self.plan, step, vector))
        return []


class FakeLearner:
    """Returns the arrays it was given, once `go` is set."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), []

    def compute(self, task: str, arrays: Any, clips: Any) -> Any:
        self.calls.append(task)
        self.go.wait(10)
        return arrays


def test_computation_for_an_epoch_that_is_over_is_never_given_to_a_later_one(monkeypatch: Any) -> None:
    """Three epochs ask for their step 0 while the first still computes; only the last one's answer counts."""
    monkeypatch.setattr(module, "encode_vector", lambda plan, step, clips, values, rounding: (plan, values))
    protocol, learner = FakeProtocol(), FakeLearner()

    async def scenario() -> None:
        runner = ClientRunner(
            protocol=protocol,  # type: ignore[arg-type]
            learner=learner,
            roster=None,  # type: ignore[arg-type]
            transport_secret=bytes(32),
            transport_public=bytes(32),
            address="tcp://127.0.0.1:1",
        )
        for plan in ("first", "second", "third"):
            protocol.plan = plan
            await runner._perform([Compute(0, plan, (1.0,), (np.zeros(1, np.float32),))])
            await asyncio.sleep(0.05)
        learner.go.set()
        assert runner._computing is not None
        await runner._computing

    asyncio.run(scenario())
    assert [(plan, vector[0]) for plan, _, vector in protocol.provided] == [("third", "third")]
    assert learner.calls == ["first", "third"]  # what nobody waits for any more is not computed
