"""Secrets in what parties say, in the files that a run leaves, and in the time that a comparison takes.

Every secret is looked for in each form in which it may be written: as it is, in hexadecimal, base64, as Python shows
bytes, as numbers. Parties are provoked by contradictions and garbage; clients log what they hold, as debugging might.
"""

from __future__ import annotations

import base64
import math
import random
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

from codream_clients.runner import ClientRunner
from codream_protocols.charter import Offer
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import ProtocolError
from codream_protocols.messages import (
    Invitation,
    MaskedInput,
    Published,
    SealDelivery,
    Survivors,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.resilient import ResilientKeys
from codream_protocols.secret import Secret
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.clients import hostile_messages
from secure_codream.threats.attacks.dropouts import all_but
from secure_codream.threats.attacks.implementation import leave_the_laboratory, some, ways_to_sum
from secure_codream.threats.laboratory.adversary import announce
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import numbered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.whole_run import contents, write_run

# -- output ---------------------------------------------


class SecretsInOutput(Attack):
    """Everything that a party says: logs, events, answers, errors, and what its objects say of themselves."""

    name = "secrets-in-output"
    adversary = "whoever reads logs, errors and reports"
    goal = "Find a key, a seed or a share in refusals, errors, notices, or in what objects say of themselves."
    promises = ("P13",)
    defences = ("hidden-reprs",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """In either mode, put contradictions and garbage to every party in the middle of a step; search their words."""
        words: list[str] = []
        needles: set[bytes] = set()
        for mode in ways_to_sum(laboratory):
            federation = laboratory.federation(defences, mode=mode)
            drawn: list[bytes] = []
            for tape in federation.tapes:
                tape.draw = _noting(drawn)
            federation.masked()
            needles.update(drawn, *(_held(client) for client in federation.clients))
            words += _refusals(federation, laboratory.random(self.name))
            if mode == "resilient":
                for member in all_but(federation):
                    answer = announce(federation, member, all_but(federation))
                    words.append(repr(answer))
                    federation.emit(federation.server.receive(member, answer))
            words += [repr(item.message) for item in federation.sent]
            for client in federation.clients:
                leave_the_laboratory(client)
            words += [word for party in (*federation.clients, federation.server) for word in _words(party)]
        needles = {secret for secret in needles if len(secret) >= 16}
        text = "\n".join(dict.fromkeys(words))
        found = sum(any(form in text for form in _forms(secret)) for secret in needles)
        return numbered(
            f"secrets found in what was said or logged, of {len(needles)}",
            found,
            found=f"{found} of {len(needles)} secrets",
            otherwise=f"nothing: {len(text):,} characters hold none of {len(needles)} secrets",
        )


def _noting(drawn: list[bytes]) -> Callable[[int], bytes]:
    """The operating system's generator, whose every draw is noted."""

    def random_bytes(count: int) -> bytes:
        drawn.append(secrets.token_bytes(count))
        return drawn[-1]

    return random_bytes


def _held(client: ClientProtocol) -> Iterator[bytes]:
    """The secrets that a client holds in an epoch."""
    epoch = client._epoch
    if epoch is None:
        return
    if epoch.group_key is not None:
        yield epoch.group_key.reveal()
    yield from (root.reveal() for root in epoch.keys._roots.values())
    if isinstance(epoch.keys, ResilientKeys):
        yield epoch.keys._seed.reveal()
        yield from (held.row(row) for held in epoch.keys._held.values() for row in range(len(held)))


# -- files ---------------------------------------------


class SecretsInFiles(Attack):
    """Everything that a run leaves on disk."""

    name = "secrets-in-files"
    adversary = "whoever gets a run's folder, but for the key files"
    goal = "Find a key, a seed or a share in a run's logs, events, models, statements, summary, exhibit or report."
    promises = ("P13",)
    defences = ("hidden-reprs",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Run a federation into a scratch folder, whose clients log all that they hold, as debugging might; search."""
        drawn: list[bytes] = []
        needles: set[bytes] = set()
        send = ClientRunner._send

        async def talkative(self: ClientRunner, effect: Send) -> None:
            if isinstance(effect.message, MaskedInput) and effect.message.step == 0:
                needles.update(_held(self._protocol))
                self._log.debug("holding", sends=repr(effect), client=list(_words(self._protocol)))
            await send(self, effect)

        with TemporaryDirectory() as scratch, patch.object(ClientRunner, "_send", talkative):
            run = write_run(Path(scratch), seed=laboratory.seed, random_bytes=_noting(drawn))
            needles |= {*drawn, *(bytes.fromhex(path.read_text()) for path in run.path.rglob("*.key"))}
            written = {path.relative_to(run.path): text(data) for path, data in contents(run.path)}
        long = {secret for secret in needles if len(secret) >= 16}
        found = {
            secret: path
            for secret in long
            for path, words in written.items()
            if any(f in words for f in _forms(secret))
        }
        return numbered(
            f"secrets found in a run's files, of {len(long)}",
            len(found),
            found=f"{len(found)} of {len(long)} secrets, in {some(sorted({path.name for path in found.values()}))}",
            otherwise=f"nothing: {len(written)} files, {sum(map(len, written.values())):,} characters, hold none of "
            f"{len(long)} secrets",
        )


def text(data: bytes) -> str:
    """A file's bytes as characters, one each, and where backslashes were doubled, as in JSON, also without that."""
    words = data.decode("latin-1")
    return words + words.replace("\\\\", "\\") if "\\\\" in words else words


def _forms(secret: bytes) -> Iterator[str]:
    """How a secret may be written: as it is, in hexadecimal, base64, as Python shows bytes, as numbers; each end."""
    for piece in (secret[:16], secret[-16:]):
        yield from (piece.decode("latin-1"), piece.hex(), base64.b64encode(piece).decode()[:20])
        yield from (repr(piece)[2:-1], str(list(piece))[1:-1])


def _words(item: Any, depth: int = 0) -> Iterator[str]:
    """What an object and its parts say of themselves."""
    yield from (repr(item), str(item))
    if depth < 5:
        parts = list(vars(item).values()) if hasattr(item, "__dict__") and not isinstance(item, type) else []
        if isinstance(item, dict):
            parts += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            parts += list(item)
        for part in parts:
            yield from _words(part, depth + 1)


def _refusals(federation: Federation, chance: random.Random) -> Iterator[str]:
    """What parties answer to garbage, and to messages that contradict what they were told, errors' causes included."""
    plan = federation.plan
    good = encode_message(Invitation(federation.offer()))
    later = Offer(0, federation.everybody, bytes(32))
    told: list[Any] = [
        Survivors(plan.digest, 0, (0, 1)),
        Survivors(bytes(32), 0, all_but(federation)),
        Invitation(later),
        SealDelivery(plan.digest, ()),
        Published(plan.digest, 0, federation.everybody, bytes(16)),
    ]
    attempts: list[Callable[[], Any]] = []
    for member, client in enumerate(federation.clients):
        attempts += [partial(federation.tell, member, message) for message in told]
        attempts += [partial(client.receive, told[-1], (bytes(3),))]
        attempts += [partial(client.provide, plan.digest, 0, {"dream": np.zeros(1)})]
    for data in hostile_messages(good, chance).values():
        attempts += [partial(decode_to_client, data), partial(decode_to_server, data)]
    for attempt in attempts:
        try:
            said = attempt()
        except ProtocolError as error:
            cause: BaseException | None = error
            while cause is not None:
                yield f"{cause!r} {cause} {vars(cause)}"
                cause = cause.__cause__ or cause.__context__
        else:
            yield repr(said)


# -- time ---------------------------------------------


class TimedComparison(Attack):
    """How long a comparison takes."""

    name = "timed-comparison"
    adversary = "whoever can measure times"
    goal = "Learn from the time of a comparison of secrets where they differ."
    paper = "Kocher, CRYPTO 1996"
    promises = ("P13",)
    defences = ("constant-time",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Compare long secrets that differ in the first or in the last byte, in turn; medians of paired ratios."""
        length, pairs = 1 << 16, 301
        content = laboratory.random(self.name).randbytes(length)
        secret = Secret(content)
        early = Secret(bytes([content[0] ^ 1]) + content[1:])
        late = Secret(content[:-1] + bytes([content[-1] ^ 1]))
        ratios = []
        for number in range(pairs):
            order = (early, late) if number % 2 else (late, early)
            times = {id(other): _nanoseconds(secret, other) for other in order}
            ratios.append(times[id(late)] / times[id(early)] - 1)
        ratios.sort()
        half = round(1.3 * math.sqrt(pairs))  # ranks of a 99 % interval of the median, free of the distribution
        interval = (ratios[pairs // 2 - half], ratios[pairs // 2 + half])
        median = ratios[pairs // 2]
        return Evidence(
            measure=f"how much longer a comparison of {length} bytes takes if they differ late, share",
            value=median,
            interval=interval,
            success=0.5,
            learned=f"a comparison takes {median:.1%} longer where the last byte differs than where the first does",
        )


def _nanoseconds(first: Secret, second: Secret) -> int:
    started = time.perf_counter_ns()
    equal = first == second
    taken = time.perf_counter_ns() - started
    if equal:
        raise Stuck("two different secrets compare as equal")
    return max(1, taken)


ATTACKS: tuple[Attack, ...] = (
    SecretsInOutput(),
    SecretsInFiles(),
    TimedComparison(),
)
