"""The network as an adversary: the real runners over ZeroMQ on loopback; a tap on the wire, strangers, floods.

Where CURVE is off, both sides speak plainly, and a connection is believed to be whose it says it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
import zmq
from zmq.utils import z85

from codream_clients.runner import ClientRunner
from codream_protocols.client import Send
from codream_protocols.errors import AggregationFailed, UnknownIdentity
from codream_protocols.identity import Roster, ServerEntry
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import Beat, Hello, Refusal, Welcome, encode_message
from codream_protocols.tasks import LOGITS, METRICS, UPDATE
from codream_server import runner as server_runner
from codream_server.runner import ServerRunner
from codream_server.settings import AggregationSettings, Timing
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.loopback import Network, Tap, honest, transport_keys
from secure_codream.threats.switches import Switch

FAST = Timing(join=10.0, step=1.5, beat=0.2, lost_after=1.2, attempts=3)
UNHEARD_SECONDS = 0.4  # how long an answer is waited for that should not come
MOST_SECONDS = 12.0
LEAST_VECTOR = 2048  # bytes of a segment that carries a vector


def connected(laboratory: Laboratory, **options: Any) -> Network:
    """The laboratory's cohort on the network, for one round of one update."""
    cohort = laboratory.cohort
    aggregation = AggregationSettings(
        value_bits=cohort.value_bits,
        suite=cohort.suite,
        colluders=cohort.colluders,
        least_survivors=cohort.least_survivors,
        threshold=cohort.threshold,
    )
    usual: dict[str, Any] = {"steps": 1, "timing": FAST, "aggregation": aggregation, "seed": laboratory.seed}
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
    policy = laboratory.cohort.policy
    tasks = {UPDATE: 3.0, LOGITS: 30.0, METRICS: 1.0}
    permitted = (
        msgspec.structs.replace(policy, tasks=tasks)
        if policy
        else net.policy(least_cohort=2, least_survivors=2, colluders=0)
    )

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(net.serving())
            endpoint = await stack.enter_async_context(tap.listening(net.endpoint)) if tap else net.endpoint
            for number in range(len(net.keys)):
                last = of_last if number == len(net.keys) - 1 else {}
                net.start(number, policy=permitted, endpoint=endpoint, **{**(of_all or {}), **last})
            for _ in range(int(MOST_SECONDS / 0.05)):
                if server.done() or until():
                    break
                await asyncio.wait({server}, timeout=0.05)
            if server.done():
                await asyncio.wait(net.tasks.values(), timeout=1.0)
            for task in net.tasks.values():
                task.cancel()
            await asyncio.gather(*net.tasks.values(), return_exceptions=True)

    net.run(scenario, seconds=2 * MOST_SECONDS)


def hears(net: Network, keys: tuple[bytes, bytes] | None, *words: Any) -> Any:
    """What the server answers to these words of a bare connection; None if nothing."""

    async def scenario() -> Any:
        async with net.serving():
            with net.peer(keys, claimed=claim(net)) as peer:
                await peer.say(*words)
                return await peer.hear(UNHEARD_SECONDS)

    return net.run(scenario)


def claim(net: Network) -> bytes:
    """The routing id by which a plain connection says that it is the first member; CURVE pays no heed to it."""
    return b"k" + net.keys[0][0]


def hello(net: Network) -> Hello:
    """The first word of a member."""
    return Hello((PROTOCOL,), net.roster.hash)


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
        answer = hears(net, transport_keys(), hello(net))
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
        return admitted(hears(net, None, hello(net)), "a plain connection")


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
        answer = hears(net, net.keys[0], Hello(("secure-codream/0",), net.roster.hash))
        return admitted(answer, "an older version")


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
        entry = ServerEntry(net.roster.server.address, public)
        roster = net.roster if defences.stands("server-pin") else msgspec.structs.replace(net.roster, server=entry)

        async def scenario() -> bool:
            with net.scripted(secret) as server:
                client = net.start(0, roster=roster, patience=2 * UNHEARD_SECONDS)
                heard = await server.hears_anything(UNHEARD_SECONDS)
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
        net = connected(laboratory, shape=(1, 16, 16), batch=8)
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
            else f"nothing: {altered} altered segments cost reconnections, and {done} of "
            f"{net.coordinator.steps_per_round} steps finish",
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
        wire = Wire(net)

        async def scenario() -> int:
            async with net.serving(), tap.listening(net.endpoint) as endpoint:
                net.endpoint, direct = endpoint, net.endpoint
                with net.peer(net.keys[0] if defences.stands("curve") else None, claimed=claim(net)) as peer:
                    await peer.say(hello(net))
                    await peer.hear()
                before = len(wire.taken)
                host, port = direct.removeprefix("tcp://").split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                for segment in tap.up[0]:
                    writer.write(segment)
                    await writer.drain()
                    await asyncio.sleep(0.02)  # the server reads a handshake step by step
                await asyncio.sleep(UNHEARD_SECONDS)
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


class Flood(Attack):
    """A member that sends nonsense without end."""

    name = "flood-of-garbage"
    adversary = "malicious client"
    goal = "Stop the others by flooding the server with messages that it has to refuse."
    promises = ("P8",)
    defences = ("contained-refusals",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """A hundred bad messages before each good one; the others' sums must be all there, and true."""
        net = connected(laboratory, timing=Timing(join=10.0, step=10.0, beat=0.2, lost_after=5.0))
        garbage = [[encode_message(Beat())], [b"\xc0"]] * 100

        def tamper(send: Send) -> list[list[bytes]]:
            quiet = isinstance(send.message, Hello | Beat)
            return [honest(send)] if quiet else [*garbage, honest(send)]

        federate(net, laboratory, tamper=tamper)
        expected = net.coordinator.steps_per_round
        missing = expected - len(net.sums) + len(net.wrong_sums())
        return Evidence(
            measure=f"sums that are missing or wrong, of {expected}",
            value=float(missing),
            success=0.0,
            learned=f"{missing} of {expected} sums are lost"
            if missing
            else f"nothing: {sum(net.server.refusals):,} refusals, and all {expected} sums are there",
        )


class Oversized(Attack):
    """A message larger than any."""

    name = "oversized-message"
    adversary = "malicious client"
    goal = "Make the server hold and parse a message beyond the limit."
    promises = ("P8",)
    defences = ("size-limit",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Send 2 MiB where the socket's limit is set to 1 MiB; the control has no limit."""
        limit = 1 << 20 if defences.stands("size-limit") else -1
        with patch.object(server_runner, "MAX_MESSAGE_BYTES", limit):
            net = connected(laboratory)
            wire = Wire(net)

            async def scenario() -> None:
                async with net.serving():
                    with net.peer(net.keys[0]) as peer:
                        await peer.say(hello(net))
                        await peer.hear()
                        await peer.say(bytes(2 << 20))
                        await peer.hear(UNHEARD_SECONDS if limit > 0 else 5.0)

            net.run(scenario)
        taken = max(map(len, wire.taken))
        over = float(max(0, taken - (1 << 20)))
        return Evidence(
            measure="bytes beyond the limit of one message that reach the parser",
            value=over,
            success=0.0,
            learned=f"{taken:,} bytes are read"
            if over
            else "nothing: the connection is closed before a byte is parsed",
        )


# -- switches ---------------------------------------------


@contextmanager
def _plain() -> Iterator[None]:
    """Both sides without CURVE; a connection is whose its routing id says."""

    class Claimed:
        def __init__(self, frame: Any, key: bytes) -> None:
            self.bytes, self._key = frame.bytes, key

        def get(self, name: str) -> str:
            return z85.encode(self._key).decode()

    def client(self: ClientRunner, socket: Any) -> None:
        socket.setsockopt(zmq.ROUTING_ID, b"k" + self._public)

    def server(self: ServerRunner, socket: Any) -> None:
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)

    take = ServerRunner._take

    def believe(self: ServerRunner, parts: list[Any]) -> None:
        take(self, [parts[0], *(Claimed(part, parts[0].bytes[1:]) for part in parts[1:])])  # type: ignore[list-item]

    with (
        patch.object(ClientRunner, "_configure", client),
        patch.object(ServerRunner, "_configure", server),
        patch.object(ServerRunner, "_take", believe),
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


def _refusals_end_it() -> Any:
    def refuse(self: ServerRunner, member: int, route: bytes, error: Exception) -> None:
        raise error

    return patch.object(ServerRunner, "_refuse", refuse)


SWITCHES = {
    "curve": Switch("Both sides encrypt and authenticate every byte with CurveZMQ.", _plain),
    "transport-roster": Switch("Only transport keys of the roster may connect.", _everyone_welcome),
    "version-negotiation": Switch(
        "A first message without this version of the protocol is refused.",
        lambda: patch.object(ServerRunner, "_check_hello", lambda self, message: None),
    ),
    "server-pin": Switch("Clients take the server's transport key from the roster, whoever answers."),
    "contained-refusals": Switch("A bad message is refused and counted, and ends nothing.", _refusals_end_it),
    "size-limit": Switch("The socket closes a connection that announces a larger message than is allowed."),
}

ATTACKS: tuple[Attack, ...] = (
    Stranger(),
    PlainSocket(),
    DowngradedHello(),
    FalseServer(),
    Eavesdropper(),
    AlteredStream("bit-flips-on-the-wire", "Change a vector on its way by flipping bits.", flip),
    AlteredStream("reordered-on-the-wire", "Change a vector on its way by exchanging pieces of it.", reorder),
    AlteredStream("truncated-on-the-wire", "Change a vector on its way by leaving bytes out.", truncate),
    ReplayedConnection(),
    Flood(),
    Oversized(),
)
