"""A malicious server on the network: garbage, forbidden offers, replays, second questions, floods.

Real clients face a server that holds the roster's key and says what the test would have it say.
"""

from __future__ import annotations

import base64
import random
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from codream_clients.refusals import ALLOWED
from codream_protocols.charter import Offer
from codream_protocols.client import MOST_SKIPPED_EPOCHS, ClientProtocol
from codream_protocols.errors import AggregationFailed
from codream_protocols.messages import (
    Advertisement,
    Beat,
    Certificate,
    EpochRecord,
    Farewell,
    Hello,
    Invitation,
    MaskedInput,
    Published,
    Refusal,
    SealDelivery,
    StepRecord,
    Survivors,
    SurvivorSignature,
    UnmaskShares,
    encode_message,
)
from codream_protocols.server import Phase, ServerProtocol
from secure_codream.simulation.sockets import PERMISSIVE
from tests.system.scenarios import MODES, bad_messages

# -- a malicious server ---------------------------------------------


async def set_up(net: Any, server: Any, **of_first: Any) -> ServerProtocol:
    """All clients with the keys of an epoch, and an honest machine that collects its first step's vectors."""
    protocol: ServerProtocol = net.server.protocol
    for number in range(len(net.keys)):
        net.start(number, **({} if number else of_first))
        hello = await server.greet()
        await server.perform(protocol, protocol.hello(number, hello), lambda: True)
    await epoch_of(net, server)
    return protocol


async def epoch_of(net: Any, server: Any) -> None:
    protocol = net.server.protocol
    await server.perform(protocol, protocol.open_epoch(protocol.cohort()), lambda: protocol.phase is Phase.COLLECTING)


async def rest_of_the_epoch(net: Any, server: Any) -> None:
    """As an honest server would do it; its sums are right, and it is certified."""
    protocol, before = net.server.protocol, net.server.protocol.certified
    await server.perform(protocol, (), lambda: protocol.certified > before)
    net.assert_sums_are_right()


@pytest.fixture
def malicious(network: Any) -> Callable[..., Any]:
    """Runs a scenario against real clients whose server says what it likes."""

    def play(scenario: Callable[..., Any], members: int = 4, **options: Any) -> Any:
        net = network(members, **options)

        async def everything() -> None:
            with net.scripted() as server:
                await scenario(net, server)

        net.run(everything)
        return net

    return play


def test_garbage_from_the_server_is_refused_and_the_client_goes_on(malicious: Any, mode: str) -> None:
    async def scenario(net: Any, server: Any) -> None:
        protocol = await set_up(net, server)
        good = encode_message(Invitation(protocol.plan.offer))
        for bad in bad_messages(good, random.Random(1)):
            await server.say(0, bad)
            assert (await server.answer(0, Refusal)).code == "malformed"
        await server.say(0, encode_message(Certificate(protocol.plan.digest, ())), (b"frame",))
        assert (await server.answer(0, Refusal)).code == "vector"
        await rest_of_the_epoch(net, server)  # control: what fits is answered

    net = malicious(scenario, MODES[mode], mode=mode)
    assert len(net.learnt(0)) <= 1


def test_offer_against_policy_or_charter_is_refused_over_the_wire(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        net.start(0, policy=msgspec.structs.replace(PERMISSIVE, least_cohort=4))
        await server.greet()
        head = net.charter.first_head
        offers = {
            Offer(0, (0, 1, 2), head): "policy",  # one block, but too few for this client
            Offer(0, (0, 1, 2, 3), head): "cohort",  # a part of a block
            Offer(0, (3, 4, 5), head): "cohort",  # without it
            Offer(2 * MOST_SKIPPED_EPOCHS, tuple(range(6)), head): "wrong-context",  # numbers are not used up
        }
        for offer, code in offers.items():
            await server.say(0, Invitation(offer))
            refusal = await server.answer(0, Refusal)
            assert (refusal.code, refusal.found, refusal.allowed) == (code, "Invitation", ALLOWED[code])
        await server.say(0, Invitation(Offer(0, tuple(range(6)), bytes(32))))  # a head that it does not know
        assert (await server.answer(0, Hello)).head == head
        await server.say(0, Invitation(Offer(7, tuple(range(6)), head)))  # control
        assert (await server.answer(0, Advertisement)).member == 0

    net = malicious(scenario, 6, mode="resilient")
    found = next(line for line in net.logs[0] if line.get("code") == "policy")
    assert found["found"] == "members: 3" and found["allowed"] == "4 or more"


class OneSetRuleOff(ClientProtocol):
    def _rule_one_survivor_set(self, current: Any, members: Any) -> None:
        return None


@pytest.mark.parametrize("protocol", [ClientProtocol, OneSetRuleOff])
def test_second_survivor_set_is_refused_over_the_wire(malicious: Any, protocol: type[ClientProtocol]) -> None:
    async def scenario(net: Any, server: Any) -> None:
        machine = await set_up(net, server, protocol=protocol)
        plan = machine.plan.digest
        await server.perform(machine, (), lambda: machine.phase is Phase.UNMASKING)
        first = await server.answer(0, UnmaskShares)
        await server.say(0, Survivors(plan, 0, (0, 1, 2)))
        if protocol is OneSetRuleOff:  # control: without the rule it signs the second set
            assert (await server.answer(0, SurvivorSignature)).step == 0
            return
        assert (await server.answer(0, Refusal)).code == "second-survivor-set"
        await server.say(0, Survivors(plan, 0, tuple(range(6))))  # the first, again: the same bytes, again
        assert await server.answer(0, UnmaskShares) == first
        await server.perform(machine, machine.receive(0, first), lambda: machine.step == 1)
        await rest_of_the_epoch(net, server)  # and it goes on

    malicious(scenario, 6, mode="resilient")


def test_what_is_asked_twice_is_answered_with_the_same_bytes(malicious: Any, mode: str) -> None:
    async def scenario(net: Any, server: Any) -> None:
        protocol = net.server.protocol
        delivered: list[Any] = []
        say = server.say

        async def noted(member: int, message: Any, frames: tuple[bytes, ...] = ()) -> None:
            if member == 0 and isinstance(message, SealDelivery):
                delivered.append(message)
            await say(member, message, frames)

        server.say = noted
        await set_up(net, server)
        first = await server.heard(0, MaskedInput)
        await say(0, delivered[0])
        second = await server.heard(0, MaskedInput)
        assert (second.message, second.frames) == (first.message, first.frames)
        other = msgspec.structs.replace(delivered[0], items=delivered[0].items[:-1])
        await say(0, other)  # another delivery for the same epoch
        assert (await server.answer(0, Refusal)).code == "cohort"
        await server.perform(protocol, protocol.receive(0, first.message, first.frames), lambda: True)
        await rest_of_the_epoch(net, server)

    malicious(scenario, MODES[mode], mode=mode)


def test_records_certificates_and_sums_of_nobody_are_refused(malicious: Any, mode: str) -> None:
    """A server that makes up the end of an epoch: nothing is voted for, certified or learnt."""

    async def scenario(net: Any, server: Any) -> None:
        protocol = await set_up(net, server)
        masked = await server.heard(0, MaskedInput)
        plan, epoch = protocol.plan, protocol._epoch
        frame = bytes(len(masked.frames[0]))
        shown = epoch.shown
        await server.say(0, Published(plan.digest, 0, plan.cohort, bytes(16)), (frame,))  # zeros, and a tag of zeros
        ended = await server.answer(0, Refusal)
        assert ended.code == "wrong-sum" and ended.plan == plan.digest
        steps = tuple(StepRecord(plan.cohort, bytes(16)) for _ in range(plan.steps))
        record = EpochRecord(plan.offer, shown, masked.message.start, steps, ())
        await server.say(1, record, (frame,) * plan.steps)  # of an epoch that it is in: nobody has voted for these sums
        assert (await server.answer(1, Refusal)).code == "certificate"
        await server.say(0, record, (frame,) * plan.steps)  # this one has left the epoch, and asks for votes
        assert (await server.answer(0, Refusal)).code == "certificate"
        await server.say(1, Certificate(plan.digest, ()))
        assert net.runners[0]._protocol.certified == net.runners[1]._protocol.certified == 0

    net = malicious(scenario, MODES[mode], mode=mode)
    assert not any(net.learnt(number) for number in range(MODES[mode]))
    assert all(diary.memory.vote is None for diary in net.diaries)


def test_text_of_the_server_is_shown_without_what_a_terminal_obeys(malicious: Any) -> None:
    async def scenario(net: Any, server: Any) -> None:
        client = net.start(0)
        await server.greet()
        await server.say(0, Farewell("\x1b[2Jdone\n\u202eeverything is fine", completed=False))
        with pytest.raises(AggregationFailed) as failed:
            await client
        assert str(failed.value).isprintable() and "\\x1b[2J" in str(failed.value)

    net = malicious(scenario)
    (line,) = [line for line in net.logs[0] if line["event"] == "farewell"]
    assert line["reason"].isprintable() and "\\u202e" in line["reason"]


def test_nothing_secret_is_in_logs_and_refusals(malicious: Any, mode: str) -> None:
    drawn: list[bytes] = []
    said: list[Any] = []

    def random_bytes(count: int) -> bytes:
        drawn.append(secrets.token_bytes(count))
        return drawn[-1]

    async def scenario(net: Any, server: Any) -> None:
        protocol = net.server.protocol
        for number in range(len(net.keys)):
            net.start(number, random_bytes=random_bytes)
            hello = await server.greet()
            await server.perform(protocol, protocol.hello(number, hello), lambda: True)
        await epoch_of(net, server)
        await server.perform(protocol, (), lambda: protocol.step == 1)
        plan = protocol.plan
        for member in range(2):
            for bad in (
                *bad_messages(encode_message(Invitation(plan.offer)), random.Random(0)),
                Invitation(Offer(1, plan.cohort[:2], plan.offer.head)),
                Certificate(plan.digest, ()),
                Survivors(plan.digest, 0, plan.cohort[:3]),
                Survivors(bytes(32), 0, plan.cohort),
                Published(plan.digest, 1, plan.cohort, bytes(16)),
            ):
                await server.say(member, bad)
                if not isinstance(bad, Certificate):
                    said.append(await server.answer(member, Refusal))

    net = malicious(scenario, MODES[mode], mode=mode, steps=3)
    assert len(said) == 2 * (9 + 4)
    # Each says its code, the kind of message and what is allowed: nothing of what was found.
    assert all(refusal.allowed == ALLOWED.get(refusal.code, refusal.allowed) for refusal in said)
    assert {refusal.found for refusal in said} <= {"a message", "Invitation", "Survivors", "Published"}
    text = repr(net.logs) + repr(said) + repr(net.events)
    shown = text.encode()
    needles = [*net.identities, *(secret for _, secret in net.keys), *(one for one in drawn if len(one) >= 16)]
    vectors = [vector.tobytes() for vector in net.plain.values()]
    assert len(needles) >= 2 * MODES[mode] + 3 * MODES[mode] and vectors
    for needle in [*needles, *vectors]:
        for piece in (needle[:16], needle[-16:]):
            assert piece.hex() not in text and piece not in shown
            assert base64.b64encode(piece)[:20] not in shown and repr(piece)[2:-1] not in text
    for vector in net.plain.values():
        assert str(list(vector[:4]))[1:-1] not in text and np.array2string(vector[:4])[1:-1] not in text


def test_floods_of_the_server_are_cut_short(malicious: Any) -> None:
    """A beat every nanosecond, and 5,000 refusals with a line each. The control: the suite's attack."""

    async def scenario(net: Any, server: Any) -> None:
        client = net.start(0)
        await server.greet()
        hurried = msgspec.msgpack.encode(["welcome", "secure-codream/2", 1e-9, net.charter.first_head])
        await server.say(0, hurried)
        for _ in range(5000):
            await server.say(0, Refusal("unexpected", "nothing", "nothing"))
        said = await server.everything(1.0)
        await server.say(0, Farewell("enough", completed=True))
        while not client.done():
            said += await server.everything(0.1)
        assert sum(isinstance(message, Beat) for message in said) < 200
        assert [message.code for message in said if isinstance(message, Refusal)] == ["malformed"]

    net = malicious(scenario)
    lines = [line for line in net.logs[0] if line["event"] == "refused-by-server"]
    assert 100 <= len(lines) <= 120 and lines[-1]["count"] == 4096
