"""The network as an adversary: the real runners over ZeroMQ on loopback; a tap on the wire, strangers, replays.

Where CURVE is off, both sides speak plainly, and a connection is believed to be whose it says it is. That nothing
comes is not shown by a clock alone: first a member is answered that has spoken later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import zmq
from zmq.utils import z85

from codream_clients import connection
from codream_clients.runner import ClientRunner
from codream_protocols.client import Send
from codream_protocols.errors import AggregationFailed, UnknownIdentity
from codream_protocols.identity import Roster, ServerEntry
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Hello, Refusal, Welcome
from codream_protocols.server import ServerProtocol
from codream_server import listening
from codream_server.admission import RosterKeys
from codream_server.runner import ServerRunner
from secure_codream.simulation.sockets import PERMISSIVE, Network, honest, transport_keys
from secure_codream.simulation.taps import Tap
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import numbered
from secure_codream.threats.laboratory.laboratory import Laboratory, of_the_toy
from secure_codream.threats.laboratory.switches import Switch

UNHEARD_SECONDS = 0.3  # how long an answer is waited for that should not come, once another one has
MOST_SECONDS = 90.0  # of a federation, and of an answer that should come
LEAST_VECTOR = 2048  # bytes of a segment that carries a vector


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

        def taking(parts: Any) -> bool:
            self.taken += [part.bytes for part in parts[1:]]
            return take(parts)

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
    policy = PERMISSIVE if laboratory.cohort.policy is None else of_the_toy(laboratory.cohort.policy)

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
    return numbered(
        f"attempts of {who} to join that get through, of 1",
        welcome,
        found=f"{who} is welcomed",
        otherwise="nothing: no answer" + (" but a refusal" if refusal else ""),
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
        return numbered(
            "clients that talk to a false server, of 1",
            heard,
            found="a client's first message",
            otherwise="nothing: no client says a word",
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
        return numbered(
            "members in whose name another one is heard, of 1",
            taken,
            found="the victim's place",
            otherwise=f"nothing: it is taken for who it is, {', '.join(joined)}",
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
        return numbered(
            f"bytes read off the wire, of {total:,} that were sent",
            read,
            found=f"{read:,} bytes of messages and masked vectors of {total:,}",
            otherwise=f"nothing but the traffic's form: {len(passed):,} bytes without a word of the {total:,} sent",
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
        return numbered(
            "messages and vectors taken by the server that nobody sent, number",
            believed,
            found=f"{believed} altered parts reach the server's machine",
            otherwise=f"nothing: {altered} altered segments cost reconnections, and {done} of 1 steps finish",
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
                    await wait_until(lambda: len(wire.taken) > before)
                writer.close()
                return len(wire.taken) - before

        replayed = int(net.run(scenario))
        return numbered(
            "messages taken from a replayed connection, number",
            replayed,
            found="what a member once said is believed again",
            otherwise="nothing: the handshake does not complete",
        )


async def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; whether it came true."""
    for _ in range(int(MOST_SECONDS / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


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
    configure, take = listening.configure, ServerRunner._take

    def configured(socket: Any, endpoint: str, **options: Any) -> None:
        configure(socket, endpoint, **options)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def believe(self: ServerRunner, parts: list[Any]) -> None:
        route = parts[0].bytes
        named = [_Claimed(part, route[1:]) for part in parts[1:]] if route[:1] == b"k" else parts[1:]
        take(self, [parts[0], *named])

    with patch.object(listening, "configure", configured), patch.object(ServerRunner, "_take", believe):
        yield


@contextmanager
def _plain() -> Iterator[None]:
    """Both sides without CURVE; a connection is whose its routing id says."""

    def named(socket: Any, *, public: bytes, **keys: bytes) -> None:
        socket.setsockopt(zmq.ROUTING_ID, b"k" + public)

    def bare(socket: Any, endpoint: str, **options: Any) -> None:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    with (
        patch.object(connection, "secure", named),
        patch.object(listening, "configure", bare),
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
        patch.object(RosterKeys, "callback", lambda self, domain, key: True),
        patch.object(Roster, "by_transport_key", lenient),
    ):
        yield


def _any_version() -> AbstractContextManager[Any]:
    greet = ServerProtocol.hello

    def lenient(self: ServerProtocol, member: int, message: Hello) -> Any:
        return greet(self, member, msgspec.structs.replace(message, versions=(PROTOCOL,)))

    return patch.object(ServerProtocol, "hello", lenient)


SWITCHES = {
    "curve": Switch("Both sides encrypt and authenticate every byte with CurveZMQ.", _plain),
    "connection-key": Switch("Who speaks is whose transport key the connection has proved to hold.", _as_claimed),
    "transport-roster": Switch("Only transport keys of the roster may connect.", _everyone_welcome),
    "version-negotiation": Switch("A first message without this version of the protocol is refused.", _any_version),
    "server-pin": Switch("Clients take the server's transport key from the roster, whoever answers."),
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
)
