"""Where a client's vectors are masked, as its own operator is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codream_clients.dream_learner import fetched
from codream_clients.masking.device import DeviceMasks, OnDevice
from secure_codream.cli import _client_line
from secure_codream.deployment import masks
from secure_codream.doctor import learning


class Log:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        """See structlog."""
        self.said.append({"event": event, **fields})

    warning = info


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has a GPU."""
    for module in (masks, learning):
        monkeypatch.setattr(module, "pick_device", lambda name: torch.device("cuda"))


@pytest.mark.usefixtures("cuda")
def test_a_client_with_a_gpu_and_the_suite_masks_there_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "why_not", lambda device, suite: None)
    log = Log()
    found, hand_over = masks.masks_on("auto", "chacha20", log, exhibited=False)
    assert isinstance(found, DeviceMasks) and hand_over is OnDevice
    found._tell("because")
    assert "masked on cuda" in (_client_line(log.said[0]) or "") and _client_line(log.said[1]) == "because"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("suite", "exhibited"), [("aes-256-ctr", False), ("chacha20", True)])
def test_another_suite_and_what_is_exhibited_are_masked_on_the_processor(suite: str, exhibited: bool) -> None:
    log = Log()
    assert masks.masks_on("auto", suite, log, exhibited=exhibited) == (None, fetched)
    assert exhibited or "the charter's suite is aes-256-ctr" in log.said[0]["text"]


@pytest.mark.usefixtures("cuda")
def test_doctor_says_where_masks_are_made() -> None:
    charter: Any = SimpleNamespace(aggregation=SimpleNamespace(suite="aes-256-ctr"))
    client: Any = SimpleNamespace(device="auto")
    (finding,) = learning.of_masks(client, charter)
    assert "the charter's suite is aes-256-ctr" in finding.found


def test_without_a_gpu_there_is_nothing_to_say() -> None:
    charter: Any = SimpleNamespace(aggregation=SimpleNamespace(suite="chacha20"))
    client: Any = SimpleNamespace(device="cpu")
    log = Log()
    assert masks.masks_on("cpu", "chacha20", log, exhibited=False) == (None, fetched)
    assert not log.said and not list(learning.of_masks(client, charter))
