"""The network as an adversary: the real runners over ZeroMQ on loopback; a tap on the wire, strangers, replays, floods.

Where CURVE is off, both sides speak plainly, and a connection is believed to be whose it says it is. That nothing
comes is not shown by a clock alone: first a member is answered that has spoken later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import msgpack
import msgspec
import zmq
from zmq.utils import z85

from codream_clients import runner as client_runner
from codream_clients.runner import ClientRunner
from codream_protocols.charter import Offer, Plan, derive_plan
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import AggregationFailed, UnknownIdentity
from codream_protocols.identity import Roster, ServerEntry
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
from codream_protocols.server import ServerProtocol
from codream_server import inbound
from codream_server import runner as server_runner
from codream_server.patience import RateLimit
from codream_server.runner import ServerRunner
from secure_codream.simulation.sockets import PERMISSIVE, Network, Peer, Tap, honest, transport_keys
from secure_codream.threats.attacks.clients import alone
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, counted
from secure_codream.threats.laboratory.laboratory import Laboratory, _of_the_toy
from secure_codream.threats.laboratory.switches import Switch

UNHEARD_SECONDS = 0.3  # how long an answer is waited for that should not come, once another one has
MOST_SECONDS = 90.0  # of a federation, and of an answer that should come
LEAST_VECTOR = 2048  # bytes of a segment that carries a vector
FLOOD = 1000


def connected(laboratory: Laboratory, **options: Any) -> Network:
    """The laboratory's cohort on the network, for one epoch of one step."""
    cohort = laboratory.cohort
    usual: dict[str, Any] = {"steps": 1, "seed": laboratory.seed}
    if cohort.charter is None:
        usual.update(cohort.settings)
    else:
        predecessor = cohort.charter.predecessor
        usual.update(charter=cohort.charter, rounds=1 + (predecessor.certified if predecessor else 0))
    return Network(cohort.clients, **{**usual, **options})


class Wire:
    """What clients sent and what the server took, part by part, below the transport."""

    def __init__(self, net: Network) -> None:
        self.sent: set[bytes] = set()
        self.taken: list[bytes] = []
        take, sent = net.server._take, self.sent

        def taking(parts: Any) -> None:
            self.taken += [part.bytes for part in parts[1:]]
            take(parts)

        net.server._take = taking  # type: ignore[method-assign]

        class Recorded(ClientRunner):
            async def _send(self, effect: Send) -> None:
                sent.update(honest(effect))
                await super()._send(effect)

        self.runner = Recorded

    @property
    def foreign(self) -> list[bytes]:
        """What the server took although no client sent it."""
        return [part for part in self.taken if part not in self.sent]


def federate(
    net: Network,
    laboratory: Laboratory,
    *,
    tap: Tap | None = None,
    until: Callable[[], bool] = lambda: False,
    of_all: Mapping[str, Any] | None = None,
    **of_last: Any,
) -> None:
    """Run the federation to its end, or until a condition holds.

    `of_all` are options of every client (see `Network.start`), `of_last` those of the last one beside them.
    """
    policy = PERMISSIVE if laboratory.cohort.policy is None else _of_the_toy(laboratory.cohort.policy)

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(net.serving())
            endpoint = await stack.enter_async_context(tap.listening(net.endpoint)) if tap else net.endpoint
            for number in range(len(net.keys)):
                last = of_last if number == len(net.keys) - 1 else {}
                net.start(number, policy=policy, endpoint=endpoint, **{**(of_all or {}), **last})
            for _ in range(int(MOST_SECONDS / 0.05)):
                if server.done() or until():
                    break
                await asyncio.wait({server}, timeout=0.05)
            if server.done():
                await asyncio.wait(net.tasks.values(), timeout=1.0)
            await net.stop_clients()

    net.run(scenario, seconds=2 * MOST_SECONDS)


def hears(net: Network, keys: tuple[bytes, bytes] | None, *words: Any, expected: bool) -> Any:
    """What the server answers to these words of a bare connection in the first member's name; None if nothing."""

    async def scenario() -> Any:
        async with net.serving():
            with net.peer(keys, claimed=claim(net)) as peer:
                await peer.say(*words)
                if expected:
                    return await peer.hear(MOST_SECONDS)
                await answered(net, 1)
                return await peer.hear(UNHEARD_SECONDS)

    return net.run(scenario)


async def answered(net: Network, member: int) -> None:
    """Wait until a member that speaks now has its answer: whatever came before it has been dealt with."""
    plain = net.server._socket.curve_server == 0
    with net.peer(None if plain else net.keys[member], claimed=claim(net, member)) as peer:
        await peer.say(hello(net))
        await peer.hear(MOST_SECONDS)


def claim(net: Network, member: int = 0) -> bytes:
    """The routing id by which a plain connection says whose it is; CURVE pays no heed to it."""
    return b"k" + net.keys[member][0]


def hello(net: Network) -> Hello:
    """The first word of a member."""
    return Hello((PROTOCOL,), net.charter.digest, net.charter.first_head, 0, b"", 0)


def admitted(answer: Any, who: str, *, refusal: str = "") -> Evidence:
    """Evidence of an attempt to be let in."""
    welcome = isinstance(answer, Welcome)
    if isinstance(answer, Refusal):
        refusal = f"{answer.code}: {answer.found}"
    return Evidence(
        measure=f"attempts of {who} to join that get through, of 1",
        value=float(welcome),
        success=0.0,
        learned=f"{who} is welcomed" if welcome else "nothing: no answer" + (" but a refusal" if refusal else ""),
        refusal=refusal,
    )


class Stranger(Attack):
    """A good transport key that is not in the roster."""

    name = "strangers-key"
    adversary = "network"
    goal = "Join the federation over CURVE with a key of its own."
    promises = ("P7", "P5")
    defences = ("transport-roster",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Say Hello, as a member would."""
        net = connected(laboratory)
        answer = hears(net, transport_keys(), hello(net), expected=not defences.stands("transport-roster"))
        return admitted(answer, "a stranger", refusal=", ".join(event["code"] for event in net.of("refused")))


class PlainSocket(Attack):
    """A connection without CURVE."""

    name = "downgrade-to-plain"
    adversary = "network"
    goal = "Have the server talk to a connection that neither encrypts nor proves who it is."
    paper = "RFC 26/CurveZMQ"
    promises = ("P7",)
    defences = ("curve",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Say Hello over a plain socket, in a member's name."""
        net = connected(laboratory)
        return admitted(hears(net, None, hello(net), expected=not defences.stands("curve")), "a plain connection")


class DowngradedHello(Attack):
    """A member that speaks another version only."""

    name = "downgraded-hello"
    adversary = "network, or a member"
    goal = "Have the server go on with a version of the protocol that is not this one."
    promises = ("P7",)
    defences = ("version-negotiation",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Offer an older version in the first message, with a member's key."""
        net = connected(laboratory)
        old = msgspec.structs.replace(hello(net), versions=("secure-codream/1",))
        return admitted(hears(net, net.keys[0], old, expected=True), "an older version")


class FalseServer(Attack):
    """Somebody else at the server's address."""

    name = "false-server"
    adversary = "network"
    goal = "Answer at the server's address with a key of its own, and hear what clients say."
    promises = ("P7",)
    defences = ("server-pin",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Listen; the control's client takes the key of whoever answers."""
        net = connected(laboratory)
        public, secret = transport_keys()
        pinned = defences.stands("server-pin")
        entry = ServerEntry(net.roster.server.address, public)
        roster = net.roster if pinned else msgspec.structs.replace(net.roster, server=entry)
        charter = msgspec.structs.replace(net.charter, roster=roster.hash)

        async def scenario() -> bool:
            with net.scripted(secret) as server, net.scripted() as true_server:
                client = net.start(0, endpoint=server.endpoint, roster=roster, charter=charter, patience=3.0)
                if pinned:  # by the time that a client of the true server is heard, so would this one have been
                    net.start(1, endpoint=true_server.endpoint)
                    await true_server.greet()
                heard = await server.hears_anything(1.0 if pinned else MOST_SECONDS)
                with contextlib.suppress(AggregationFailed):
                    await client
                return heard

        heard = bool(net.run(scenario))
        return Evidence(
            measure="clients that talk to a false server, of 1",
            value=float(heard),
            success=0.0,
            learned="a client's first message" if heard else "nothing: no client says a word",
        )


class Impostor(Attack):
    """A member, with its own key, under another member's name."""

    name = "impostor-on-the-wire"
    adversary = "malicious client"
    goal = "Speak to the server over its own connection and be taken for another member."
    promises = ("P7", "P5")
    defences = ("connection-key",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Claim the victim's routing id, and say Hello."""
        net = connected(laboratory)

        async def scenario() -> None:
            async with net.serving():
                with net.peer(net.keys[1], claimed=claim(net)) as peer:
                    await peer.say(hello(net))
                    await peer.hear(MOST_SECONDS)

        net.run(scenario)
        joined = {event["client"] for event in net.of("client_joined")}
        taken = net.roster.members[0].name in joined
        return Evidence(
            measure="members in whose name another one is heard, of 1",
            value=float(taken),
            success=0.0,
            learned="the victim's place" if taken else f"nothing: it is taken for who it is, {', '.join(joined)}",
        )


class Eavesdropper(Attack):
    """All bytes on the wire, kept."""

    name = "eavesdropper"
    adversary = "network"
    goal = "Read messages and vectors off the wire."
    promises = ("P7",)
    defences = ("curve",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Relay a whole federation, and look for what clients sent in what passed."""
        net, tap = connected(laboratory), Tap()
        wire = Wire(net)
        federate(net, laboratory, tap=tap, of_all={"kind": wire.runner})
        passed = b"".join(b"".join(stream) for stream in tap.up)
        words = [part for part in wire.sent if len(part) >= 16]
        read = sum(len(part) for part in words if part in passed)
        total = sum(len(part) for part in words)
        return Evidence(
            measure=f"bytes read off the wire, of {total:,} that were sent",
            value=float(read),
            success=0.0,
            learned=f"{read:,} bytes of messages and masked vectors of {total:,}"
            if read
            else f"nothing but the traffic's form: {len(passed):,} bytes without a word of the {total:,} sent",
        )


class AlteredStream(Attack):
    """Bytes changed on the wire."""

    adversary = "network"
    promises = ("P7",)
    defences = ("curve",)

    def __init__(self, name: str, goal: str, alter: Callable[[bytes], bytes]) -> None:
        self.name, self.goal, self._alter = name, goal, alter

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Alter the first two segments that carry a vector; then let the federation go on."""
        net = connected(laboratory, length=4096)
        wire, altered = Wire(net), 0

        def alter(data: bytes) -> bytes:
            nonlocal altered
            if len(data) < LEAST_VECTOR or altered >= 2:
                return data
            altered += 1
            return self._alter(data)

        federate(net, laboratory, tap=Tap(alter), of_all={"kind": wire.runner}, until=lambda: bool(wire.foreign))
        believed = len(wire.foreign)
        done = len(net.of("step_finished"))
        return Evidence(
            measure="messages and vectors taken by the server that nobody sent, number",
            value=float(believed),
            success=0.0,
            learned=f"{believed} altered parts reach the server's machine"
            if believed
            else f"nothing: {altered} altered segments cost reconnections, and {done} of 1 steps finish",
        )


def flip(data: bytes) -> bytes:
    """One bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def reorder(data: bytes) -> bytes:
    """Two pieces of 64 bytes in each other's place."""
    middle = len(data) // 2
    return data[: middle - 64] + data[middle : middle + 64] + data[middle - 64 : middle] + data[middle + 64 :]


def truncate(data: bytes) -> bytes:
    """Sixteen bytes left out in the middle."""
    middle = len(data) // 2
    return data[:middle] + data[middle + 16 :]


class ReplayedConnection(Attack):
    """A member's connection, played once more."""

    name = "replayed-connection"
    adversary = "network"
    goal = "Be taken for a member by sending again what the member once sent."
    promises = ("P7",)
    defences = ("curve",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Record a member's Hello on the wire; send the very bytes on a connection of its own."""
        net, tap = connected(laboratory), Tap()
        wire, stands = Wire(net), defences.stands("curve")

        async def scenario() -> int:
            async with net.serving(), tap.listening(net.endpoint) as endpoint:
                net.endpoint, direct = endpoint, net.endpoint
                with net.peer(net.keys[0] if stands else None, claimed=claim(net)) as peer:
                    await peer.say(hello(net))
                    await peer.hear(MOST_SECONDS)
                net.endpoint, before = direct, len(wire.taken)
                host, port = direct.removeprefix("tcp://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                for segment in tap.up[0]:
                    writer.write(segment)
                    with contextlib.suppress(asyncio.TimeoutError):  # the server reads a handshake step by step
                        await asyncio.wait_for(reader.read(1 << 16), 0.5)
                if stands:
                    await answered(net, 1)
                    before += 1  # that member's own word
                else:
                    await _until(lambda: len(wire.taken) > before)
                writer.close()
                return len(wire.taken) - before

        replayed = int(net.run(scenario))
        return Evidence(
            measure="messages taken from a replayed connection, number",
            value=float(replayed),
            success=0.0,
            learned="what a member once said is believed again"
            if replayed
            else "nothing: the handshake does not complete",
        )


async def _until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; whether it came true."""
    for _ in range(int(MOST_SECONDS / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


# -- floods ---------------------------------------------


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
        return Evidence(
            measure=f"sums that are missing or wrong, of {expected}",
            value=float(missing),
            success=0.0,
            learned=f"{missing} of {expected} sums are lost"
            if missing
            else f"nothing: {sum(net.server.refusals):,} refusals, and all {expected} sums are there",
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
    charter, course = net.charter, net.course
    offer = Offer(0, charter.everybody, net.server.protocol.head)
    plan = plan_of(net, offer)
    key, steps = bytes(32), tuple(StepRecord(charter.everybody, bytes(16)) for _ in range(plan.steps))
    size = 32 * plan.steps if charter.aggregation.mode == "resilient" else 0
    shown = tuple(
        Advertisement(plan.digest, member, key, bytes(1184), key, key, bytes(size), bytes(size), bytes(64))
        for member in charter.everybody
    )
    record = EpochRecord(offer, shown, bytes(32 * charter.members), steps, (SignedBy(0, bytes(64)),))
    specs = course.specs(charter.least_honest)
    frames = [bytes(packed_size(specs[kind].words, plan.modulus_bits)) for kind in plan.schedule]
    return [(record, *frames)] * FLOOD, _calls(net.server.protocol, "receive")


def plan_of(net: Network, offer: Offer) -> Plan:
    """The plan of an offer, as every party derives it."""
    return derive_plan(net.charter, net.course, offer, net.server.protocol.certified)


def _of_nonsense(net: Network) -> tuple[Sequence[tuple[Any, ...]], Callable[[], int]]:
    return [(b"\xc0",)] * FLOOD, _calls(net.server, "_answer")


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
                    await _until(lambda: len(wire.taken) >= 1 + parts * len(words))
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


ClientFlood = tuple[Callable[[Network], list[Any]], Callable[[Network, list[Any]], int], int, float, str]
CLIENT_FLOODS: Mapping[str, ClientFlood] = {
    "a beat every 10^-9 s": (_hurried, _how_many(Beat), 60, 1.0, "beat-floor"),
    "5,000 refusals, a line each": (_refusals, _lines, 1000, 0.1, "short-log"),
    "invitations to be refused": (_refused_invitations, _how_many(Refusal), FLOOD // 3, 0.1, "answer-allowances"),
    "calls for a Hello": (_asks_for_hello, _how_many(Hello), FLOOD // 3, 0.1, "answer-allowances"),
    "invitations after unknown heads": (_unknown_heads, _how_many(Hello), FLOOD // 3, 0.1, "answer-allowances"),
    "epochs begun and given up": (_endings, _how_many(Advertisement), 40, 0.1, "_rule_attempts"),
}


class FloodedClient(Attack):
    """A server that has its clients work for nothing."""

    name = "floods-of-a-client"
    adversary = "malicious server"
    goal = "Have a client send, write and begin without end, by messages that cost the server nothing."
    promises = ("P8",)
    defences = tuple(dict.fromkeys(defence for *_, defence in CLIENT_FLOODS.values()))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A thousand or more of each kind at once; how many messages or lines the client makes of them."""
        tries = {
            what: Try(partial(_floods_client, laboratory, words, spent, most, seconds), (defence,))
            for what, (words, spent, most, seconds, defence) in CLIENT_FLOODS.items()
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
                        await _until(lambda: max(map(len, wire.taken)) > limit)

        with contextlib.nullcontext() if stands else patch.object(inbound.Bounds, "socket", -1):
            net.run(scenario)
        taken = max(map(len, wire.taken))
        over = float(max(0, taken - limit))
        return Evidence(
            measure="bytes beyond the limit of one message that reach the parser",
            value=over,
            success=0.0,
            learned=f"{taken:,} bytes are read"
            if over
            else f"nothing: beyond {limit:,} bytes the connection is closed before a byte is parsed",
        )


# -- switches ---------------------------------------------


class _Claimed:
    """A frame of whoever its connection's routing id says."""

    def __init__(self, frame: Any, key: bytes) -> None:
        self.bytes, self._key = frame.bytes, key

    def __len__(self) -> int:
        return len(self.bytes)

    def get(self, name: str) -> str:
        return z85.encode(self._key).decode()


@contextmanager
def _as_claimed() -> Iterator[None]:
    """A connection is whose its routing id says, whatever key it has proved to hold."""
    configure, take = ServerRunner._configure, ServerRunner._take

    def configured(self: ServerRunner, socket: Any) -> None:
        configure(self, socket)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def believe(self: ServerRunner, parts: list[Any]) -> None:
        route = parts[0].bytes
        named = [_Claimed(part, route[1:]) for part in parts[1:]] if route[:1] == b"k" else parts[1:]
        take(self, [parts[0], *named])

    with patch.object(ServerRunner, "_configure", configured), patch.object(ServerRunner, "_take", believe):
        yield


@contextmanager
def _plain() -> Iterator[None]:
    """Both sides without CURVE; a connection is whose its routing id says."""

    def connected(self: ClientRunner, context: Any) -> Any:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, b"k" + self._public)
        socket.connect(self._address)
        return socket

    def bare(self: ServerRunner, socket: Any) -> None:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    with (
        patch.object(ClientRunner, "_connected", connected),
        patch.object(ServerRunner, "_configure", bare),
        _as_claimed(),
    ):
        yield


@contextmanager
def _everyone_welcome() -> Iterator[None]:
    """Any CURVE key may connect, and a stranger is taken for the first member."""
    by_transport_key = Roster.by_transport_key

    def lenient(self: Roster, key: bytes) -> int:
        try:
            return by_transport_key(self, key)
        except UnknownIdentity:
            return 0

    with (
        patch.object(server_runner._RosterKeys, "callback", lambda self, domain, key: True),
        patch.object(Roster, "by_transport_key", lenient),
    ):
        yield


def _any_version() -> AbstractContextManager[Any]:
    greet = ServerProtocol.hello

    def lenient(self: ServerProtocol, member: int, message: Hello) -> Any:
        return greet(self, member, msgspec.structs.replace(message, versions=(PROTOCOL,)))

    return patch.object(ServerProtocol, "hello", lenient)


def _refusals_end_it() -> AbstractContextManager[Any]:
    def refuse(self: ServerRunner, member: int, route: bytes, error: Exception) -> None:
        raise error

    return patch.object(ServerRunner, "_refuse", refuse)


def _any_beat() -> AbstractContextManager[Any]:
    """A Welcome is believed without the bounds of its fields."""
    decode = decode_to_client

    def lenient(data: bytes, most_bytes: int) -> Any:
        if data[1:9] == b"\xa7welcome":
            _, version, beat, head = msgpack.unpackb(data)
            return Welcome(version, beat, head)
        return decode(data, most_bytes)

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
    "short-event-log": lambda: patch.object(server_runner, "worth_a_line", lambda count: True),
}
CLIENTS_BOUNDS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "beat-floor": _any_beat,
    "short-log": _every_line,
    "answer-allowances": lambda: patch.object(client_runner.Allowance, "take", lambda self: True),
    "_rule_attempts": _endless_attempts,
}

SWITCHES = {
    "curve": Switch("Both sides encrypt and authenticate every byte with CurveZMQ.", _plain),
    "connection-key": Switch("Who speaks is whose transport key the connection has proved to hold.", _as_claimed),
    "transport-roster": Switch("Only transport keys of the roster may connect.", _everyone_welcome),
    "version-negotiation": Switch("A first message without this version of the protocol is refused.", _any_version),
    "server-pin": Switch("Clients take the server's transport key from the roster, whoever answers."),
    "contained-refusals": Switch("A bad message is refused and counted, and ends nothing.", _refusals_end_it),
    "size-limit": Switch("The socket closes a connection that announces a larger message than is allowed."),
    "rate-limits": Switch("Of each kind of message a member's are looked at up to a rate; the rest is dropped."),
    "answer-limit": Switch("A member is answered with refusals up to a rate."),
    "short-event-log": Switch("Of many alike the server writes the first hundred, then ever fewer."),
    "beat-floor": Switch("A server may not ask for more than ten beats a second."),
    "short-log": Switch("Of many lines alike a client writes the first hundred, then ever fewer."),
    "answer-allowances": Switch("A client says Hello, and refuses, up to a rate."),
}

ATTACKS: tuple[Attack, ...] = (
    Stranger(),
    PlainSocket(),
    DowngradedHello(),
    FalseServer(),
    Impostor(),
    Eavesdropper(),
    AlteredStream("bit-flips-on-the-wire", "Change a vector on its way by flipping bits.", flip),
    AlteredStream("reordered-on-the-wire", "Change a vector on its way by exchanging pieces of it.", reorder),
    AlteredStream("truncated-on-the-wire", "Change a vector on its way by leaving bytes out.", truncate),
    ReplayedConnection(),
    Flood(),
    FloodedServer(),
    FloodedClient(),
    Oversized(),
)
