"""A device that fails once a step's masks are taken: its client leaves that epoch, and no other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from codream_protocols.accelerator import Masked, NotErased
from codream_protocols.charter import Plan
from codream_protocols.client import ClientProtocol, State
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import AggregationFailed
from codream_protocols.messages import MaskedInput, Refusal, UnmaskShares
from codream_protocols.tag import TagKey
from secure_codream.simulation.wire import Federation

VICTIM = 0


class Device:
    """Leaves all to the processor up to a step, and fails at it."""

    def __init__(self, step: int = 1, error: Exception | None = None) -> None:
        self.asked, self._step = list[int](), step
        self._error = error or RuntimeError("the device is gone")

    def ready(self, plan: Plan, step: int, values: Mapping[str, Any], random_bytes: RandomBytes) -> Device | None:
        self.asked.append(step)
        return self if step == self._step else None

    def masked(self, keys: Sequence[tuple[bytes, bool]], tag_key: TagKey) -> Masked:
        raise self._error


def federation(members: int, device: Device, **options: Any) -> Federation:
    first: Any = partial(ClientProtocol, accelerator=device)
    return Federation(members, client_class=[first, *[ClientProtocol] * (members - 1)], steps=3, **options)


def sent_by_victim(found: Federation, kind: type) -> list[Any]:
    return [item.message for item in found.sent if item.to_server and item.member == VICTIM and item.kind is kind]


def test_in_lockstep_the_epoch_is_given_up_and_the_next_one_is_whole() -> None:
    found = federation(3, device := Device())
    victim = found.clients[VICTIM]
    assert found.set_up() and found.step() is not None
    asked = found.computing[VICTIM]
    assert victim._epoch is not None and victim._epoch.step is not None
    keys, tag_key = victim._epoch.keys, victim._epoch.step.tag_key
    assert found.step() is None
    assert found.failures == ["client-0 refused (device-failed)"]
    assert victim.state is State.IDLE and victim.plan is None and found.server.plan is None
    assert keys._roots and all(root.erased for root in keys._roots.values()) and tag_key._pads.erased
    (ended,) = found.news[VICTIM].ended
    assert "its masks used up" in ended.reason and "masks on the processor" in ended.reason and not ended.wrong_sum
    assert "RuntimeError" in ended.reason and "the device is gone" not in ended.reason  # it could be anything
    assert [message.step for message in sent_by_victim(found, MaskedInput)] == [0]
    assert victim.provide(asked.plan, asked.step, None) == []  # nothing else is masked by those keys
    assert found.diaries[VICTIM].memory.attempts == 1 and found.diaries[VICTIM].memory.steps == 2
    found.epoch()
    assert device.asked == [0, 1]  # what failed once is not asked again
    assert found.server.certified == victim.certified == 1 and found.failures[1:] == []


def test_with_dropouts_the_others_go_on_and_it_learns_what_they_certify() -> None:
    found = federation(6, Device(), mode="resilient")
    assert found.set_up()
    whole, lost, late = found.step(), found.step(), found.step()
    assert whole is not None and lost is not None and late is not None
    assert whole.survivors == tuple(range(6)) and lost.survivors == late.survivors == (3, 4, 5)
    assert np.array_equal(lost.total, found.plain_sum(1, (3, 4, 5)))
    assert [message.step for message in sent_by_victim(found, MaskedInput)] == [0]
    assert [message.step for message in sent_by_victim(found, UnmaskShares)] == [0]  # it has no share of a later step
    assert found.finish() is not None
    assert found.clients[VICTIM].certified == 1 and found.clients[VICTIM].head == found.server.head
    found.epoch()
    assert found.reveals[-1].survivors == tuple(range(6))


def test_the_server_is_told_the_same_whatever_the_device_says() -> None:
    told = list[Refusal]()
    for error in (RuntimeError("one"), MemoryError("another")):
        found = federation(3, Device(0, error))
        assert found.set_up() and found.step() is None
        told += sent_by_victim(found, Refusal)
    one, other = told
    assert (one.code, one.found, one.allowed) == (other.code, other.found, other.allowed)


def test_a_device_that_may_keep_the_keys_ends_the_client() -> None:
    found = federation(3, Device(0, NotErased("it does nothing any more")))
    assert found.set_up()
    victim = found.clients[VICTIM]
    with pytest.raises(AggregationFailed, match=r"its masks used up.*start this client again"):
        victim.provide(found.plan.digest, 0, {"dream": np.zeros(20)})
    assert victim.plan is None and victim.state is State.IDLE
