"""Floods: nonsense, allowed messages and refusals without end, from a member or a server, and messages too large.

A flood is counted by what it costs its receiver: calls of its machine, answers, lines of a log, sums that are lost.
Each bound has a control of its own, in which the others stand.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

import msgpack
import msgspec

from codream_clients import runner as client_runner
from codream_clients.allowance import Allowance
from codream_clients.runner import ClientRunner
from codream_protocols.charter import Offer, Plan, derive_plan
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Advertisement,
    Beat,
    EpochRecord,
    Farewell,
    GivenUp,
    Hello,
    Invitation,
    Refusal,
    SignedBy,
    StepRecord,
    Welcome,
    decode_to_client,
    encode_message,
)
from codream_protocols.packing import packed_size
from codream_server import inbound, story
from codream_server.patience import RateLimit
from codream_server.runner import ServerRunner
from secure_codream.simulation.sockets import Network, honest
from secure_codream.simulation.steered import Peer
from secure_codream.threats.attacks.clients import alone
from secure_codream.threats.attacks.network import (
    MOST_SECONDS,
    UNHEARD_SECONDS,
    Wire,
    answered,
    connected,
    federate,
    hello,
    wait_until,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted, numbered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import Switch

FLOOD = 1000


def nonsense(chance: random.Random) -> list[bytes]:
    """Bytes that are no message, of several kinds."""
    good = bytearray(encode_message(Beat(bytes(32), 7)))
    good[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
    return [b"", b"\xc0", chance.randbytes(chance.randrange(2, 300)), b"\x91" * 2000, bytes(good[:-1])]


class Flood(Attack):
    """A member that sends nonsense without end."""

    name = "flood-of-garbage"
    adversary = "malicious client"
    goal = "Stop the others by flooding the server with messages that it has to refuse."
    promises = ("P8",)
    defences = ("contained-refusals",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two hundred bad messages before each good one; the others' sums must be all there, and true."""
        net = connected(laboratory, steps=2)
        chance = laboratory.random(self.name)

        def tamper(send: Send) -> list[list[bytes]]:
            garbage = [[data] for _ in range(40) for data in nonsense(chance)]
            return [honest(send)] if isinstance(send.message, Hello | Beat) else [*garbage, honest(send)]

        federate(net, laboratory, tamper=tamper)
        expected = 2
        missing = expected - len(net.sums) + len(net.wrong_sums())
        return numbered(
            f"sums that are missing or wrong, of {expected}",
            missing,
            found=f"{missing} of {expected} sums are lost",
            otherwise=f"nothing: {sum(net.server.story.refusals):,} refusals, and all {expected} sums are there",
        )


Flooding = Callable[[Network], tuple[Sequence[tuple[Any, ...]], Callable[[], int]]]
"""What a member floods the server with, and afterwards how much of it the server has spent work on."""


def _of_hellos(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    return [(hello(net),)] * FLOOD, _calls(net.server.protocol, "hello")


def _of_beats(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    return [(Beat(bytes(32), 0),)] * FLOOD, _calls(net.server.protocol, "beat")


def _of_refusals(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    refusal = Refusal("policy", "x" * 500, "y" * 500)
    return [(refusal,)] * FLOOD, _calls(net.server, "_on_refusal")


def _of_records(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    """Records that come after the server's head, with sums of the right size and its giver's vote, and all else false.

    Before a signature is looked at, all of it has to be unpacked and compared.
    """
    charter = net.charter
    offer = Offer(0, charter.everybody, net.server.protocol.head)
    plan = plan_of(net, offer)
    key, steps = bytes(32), tuple(StepRecord(charter.everybody, bytes(16)) for _ in range(plan.steps))
    size = 32 * plan.steps if charter.aggregation.mode == "resilient" else 0
    shown = tuple(
        Advertisement(plan.digest, member, key, bytes(1184), key, key, bytes(size), bytes(size), bytes(64))
        for member in charter.everybody
    )
    record = EpochRecord(offer, shown, bytes(32 * charter.members), steps, (SignedBy(0, bytes(64)),))
    frames = [bytes(packed_size(plan.spec(step).words, plan.modulus_bits(step))) for step in range(plan.steps)]
    return [(record, *frames)] * FLOOD, _calls(net.server.protocol, "receive")


def plan_of(net: Network, offer: Offer) -> Plan:
    """The plan of an offer, as every party derives it."""
    return derive_plan(net.charter, net.course, offer, net.server.protocol.certified)


def _of_nonsense(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    return [(b"\xc0",)] * FLOOD, _calls(net.server._outbox, "answer")


def _of_lines(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    return [(b"\xc0",)] * FLOOD, lambda: len(net.of("refused"))


def _calls(machine: Any, name: str) -> Callable[[], int]:
    """Count the calls of a method from now on."""
    method, count = getattr(machine, name), 0

    def counting(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return method(*arguments)

    setattr(machine, name, counting)
    return lambda: count


def _floods_server(laboratory: Laboratory, flooding: Flooding, standing: Defences) -> bool:
    """Whether the server spends work on more than a third of a flood."""
    with alone(standing, SERVERS_BOUNDS):
        net = connected(laboratory)
        words, spent = flooding(net)
        wire = Wire(net)

        async def scenario() -> None:
            async with net.serving():
                with net.peer(net.keys[0]) as peer:
                    await peer.say(hello(net))
                    await peer.hear(MOST_SECONDS)
                    parts = len(words[0])
                    reading = asyncio.ensure_future(_read(peer))
                    for word in words:
                        await peer.say(*word)
                    await wait_until(lambda: len(wire.taken) >= 1 + parts * len(words))
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)

        net.run(scenario, seconds=2 * MOST_SECONDS)
        return spent() > FLOOD // 3


async def _read(peer: Peer) -> None:
    while True:
        await peer.hear(1.0)


SERVER_FLOODS: Mapping[str, tuple[Flooding, str]] = {
    "Hellos": (_of_hellos, "rate-limits"),
    "Beats": (_of_beats, "rate-limits"),
    "Refusals": (_of_refusals, "rate-limits"),
    "records of epochs": (_of_records, "rate-limits"),
    "messages to be answered": (_of_nonsense, "answer-limit"),
    "messages to be written down": (_of_lines, "short-event-log"),
}


class FloodedServer(Attack):
    """A member that says what is allowed, without end."""

    name = "floods-of-the-server"
    adversary = "malicious client"
    goal = "Have the server work, answer and write without end at what a member may send as often as it likes."
    promises = ("P8",)
    defences = tuple(dict.fromkeys(defence for _, defence in SERVER_FLOODS.values()))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A thousand of each kind at once; how many of them the server spends work, an answer or a line on."""
        tries = {
            f"{FLOOD} {what}": Try(partial(_floods_server, laboratory, flooding), (defence,))
            for what, (flooding, defence) in SERVER_FLOODS.items()
        }
        return counted(tries, what="floods of which the server does more than a third", defences=defences)


def _floods_client(
    laboratory: Laboratory,
    words: Callable[[Network], list[Any]],
    spent: Callable[[Network, list[Any]], int],
    most: int,
    seconds: float,
    standing: Defences,
) -> bool:
    """Whether a client spends more than `most` lines or messages on what its server says within so many seconds."""
    with alone(standing, CLIENTS_BOUNDS):
        net = connected(laboratory)

        async def scenario() -> list[Any]:
            with net.scripted() as server:
                client = net.start(0)
                await server.greet()
                for word in words(net):
                    await server.say(0, word)
                heard = await server.everything(seconds)
                await server.say(0, Farewell("enough", completed=True))
                while not client.done():  # all that was said before has been dealt with
                    heard += await server.everything(0.2)
                return heard

        return spent(net, net.run(scenario, seconds=2 * MOST_SECONDS)) > most


def _how_many(kind: type) -> Callable[[Network, list[Any]], int]:
    return lambda net, heard: sum(isinstance(message, kind) for message in heard)


def _lines(net: Network, heard: list[Any]) -> int:
    return len(net.logs[0])


def _hurried(net: Network) -> list[Any]:
    return [msgspec.msgpack.encode(["welcome", PROTOCOL, 1e-9, net.charter.first_head])]


def _refused_invitations(net: Network) -> list[Any]:
    return [Invitation(Offer(0, (0, 1), net.charter.first_head))] * FLOOD


def _refusals(net: Network) -> list[Any]:
    return [Refusal("unexpected", "nothing", "nothing")] * (5 * FLOOD)


def _asks_for_hello(net: Network) -> list[Any]:
    return [Refusal("hello-needed", "nothing", "Hello")] * FLOOD


def _unknown_heads(net: Network) -> list[Any]:
    return [Invitation(Offer(0, net.charter.everybody, bytes(32)))] * FLOOD


def _endings(net: Network) -> list[Any]:
    """Epochs that are begun and given up at once: each makes keys, and is said on the client's screen."""
    offers = [Offer(number, net.charter.everybody, net.charter.first_head) for number in range(FLOOD // 5)]
    plans = [plan_of(net, offer).digest for offer in offers]
    pairs = zip(offers, plans, strict=True)
    return [message for offer, plan in pairs for message in (Invitation(offer), GivenUp(plan, "again"))]


ClientFlood = tuple[Callable[[Network], list[Any]], Callable[[Network, list[Any]], int], int, float, tuple[str, ...]]


CLIENT_FLOODS: Mapping[str, ClientFlood] = {
    "a beat every 10^-9 s": (_hurried, _how_many(Beat), 60, 1.0, ("beat-floor",)),
    "5,000 refusals, a line each": (_refusals, _lines, 1000, 0.1, ("short-log",)),
    "invitations to be refused": (_refused_invitations, _how_many(Refusal), FLOOD // 3, 0.1, ("answer-allowances",)),
    "calls for a Hello": (_asks_for_hello, _how_many(Hello), FLOOD // 3, 0.1, ("answer-allowances", "one-greeting")),
    "invitations after unknown heads": (_unknown_heads, _how_many(Hello), FLOOD // 3, 0.1, ("answer-allowances",)),
    "epochs begun and given up": (_endings, _how_many(Advertisement), 40, 0.1, ("_rule_attempts",)),
}


class FloodedClient(Attack):
    """A server that has its clients work for nothing."""

    name = "floods-of-a-client"
    adversary = "malicious server"
    goal = "Have a client send, write and begin without end, by messages that cost the server nothing."
    promises = ("P8",)
    defences = tuple(dict.fromkeys(one for *_, defences in CLIENT_FLOODS.values() for one in defences))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A thousand or more of each kind at once; how many messages or lines the client makes of them."""
        tries = {
            what: Try(partial(_floods_client, laboratory, words, spent, most, seconds), of_try)
            for what, (words, spent, most, seconds, of_try) in CLIENT_FLOODS.items()
        }
        return counted(tries, what="floods that a client answers without end", defences=defences)


class Oversized(Attack):
    """A message larger than any."""

    name = "oversized-message"
    adversary = "malicious client"
    goal = "Make the server hold and parse a message beyond the limit."
    promises = ("P8",)
    defences = ("size-limit",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send 1 MiB more than the socket's limit; the control has no limit."""
        net = connected(laboratory)
        limit, wire = net.server._bounds.socket, Wire(net)
        stands = defences.stands("size-limit")

        async def scenario() -> None:
            async with net.serving():
                with net.peer(net.keys[0]) as peer:
                    await peer.say(hello(net))
                    await peer.hear(MOST_SECONDS)
                    await peer.say(bytes(limit + (1 << 20)))
                    if stands:
                        await answered(net, 1)
                        await peer.hear(UNHEARD_SECONDS)
                    else:
                        await wait_until(lambda: max(map(len, wire.taken)) > limit)

        with contextlib.nullcontext() if stands else patch.object(inbound.Bounds, "socket", -1):
            net.run(scenario)
        taken = max(map(len, wire.taken))
        over = float(max(0, taken - limit))
        return numbered(
            "bytes beyond the limit of one message that reach the parser",
            over,
            found=f"{taken:,} bytes are read",
            otherwise=f"nothing: beyond {limit:,} bytes the connection is closed before a byte is parsed",
        )


# -- switches ---------------------------------------------


def _refusals_end_it() -> AbstractContextManager[Any]:
    def refuse(self: ServerRunner, member: int, route: bytes, error: Exception) -> None:
        raise error

    return patch.object(ServerRunner, "_answer", refuse)


def _any_beat() -> AbstractContextManager[Any]:
    """A Welcome is believed without the bounds of its fields."""
    decode = decode_to_client

    def lenient(data: bytes, *most_bytes: int) -> Any:
        if data[1:9] == b"\xa7welcome":
            _, version, beat, head = msgpack.unpackb(data)
            return Welcome(version, beat, head)
        return decode(data, *most_bytes)

    return patch.object(client_runner, "decode_to_client", lenient)


def _every_line() -> AbstractContextManager[Any]:
    def say(self: ClientRunner, level: str, event: str, code: str = "", **words: Any) -> None:
        getattr(self._log, level)(event, code=code, **words)

    return patch.object(ClientRunner, "_say", say)


def _endless_attempts() -> AbstractContextManager[Any]:
    return patch.object(ClientProtocol, "_rule_attempts", lambda self: None)


SERVERS_BOUNDS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "rate-limits": lambda: patch.object(inbound.Rates, "over_limit", lambda self, message: 0),
    "answer-limit": lambda: patch.object(RateLimit, "admits", lambda self: True),
    "short-event-log": lambda: patch.object(story, "worth_a_line", lambda count: True),
}
CLIENTS_BOUNDS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "beat-floor": _any_beat,
    "short-log": _every_line,
    "answer-allowances": lambda: patch.object(Allowance, "take", lambda self: True),
    "one-greeting": lambda: patch.object(ClientRunner, "_is_greeting", False),
    "_rule_attempts": _endless_attempts,
}

SWITCHES = {
    "contained-refusals": Switch("A bad message is refused and counted, and ends nothing.", _refusals_end_it),
    "size-limit": Switch("The socket closes a connection that announces a larger message than is allowed."),
    "rate-limits": Switch("Of each kind of message a member's are looked at up to a rate; the rest is dropped."),
    "answer-limit": Switch("A member is answered with refusals up to a rate."),
    "short-event-log": Switch("Of many alike the server writes the first hundred, then ever fewer."),
    "beat-floor": Switch("A server may not ask for more than ten beats a second."),
    "short-log": Switch("Of many lines alike a client writes the first hundred, then ever fewer."),
    "answer-allowances": Switch("A client says Hello, and refuses, up to a rate."),
    "one-greeting": Switch("While a Hello is on its way, what asks for one is not answered with another."),
}

ATTACKS: tuple[Attack, ...] = (
    Flood(),
    FloodedServer(),
    FloodedClient(),
    Oversized(),
)
