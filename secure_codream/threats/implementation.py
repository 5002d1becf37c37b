"""What an implementation may give away of a sound protocol: randomness, statistics, memory, output, time."""

from __future__ import annotations

import base64
import gc
import json
import math
import random
import secrets
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_clients.runner import ClientRunner
from codream_protocols import client as client_module
from codream_protocols import shamir
from codream_protocols.client import ClientProtocol, Send
from codream_protocols.errors import ProtocolError
from codream_protocols.keyschedule import StepKeys
from codream_protocols.masks import add_mask
from codream_protocols.messages import MaskedInput, PlanOffer, Survivors
from codream_protocols.plan import Block, VectorSpec
from codream_protocols.secret import Secret
from codream_protocols.server import ServerEpoch
from secure_codream.threats import network
from secure_codream.threats.adversary import announce, open_sum
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.clients import hostile_messages
from secure_codream.threats.dropouts import VICTIM, all_but
from secure_codream.threats.evidence import Vector, recovered
from secure_codream.threats.federation import Federation, Stuck
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.loopback import honest
from secure_codream.threats.run_folder import contents, write_run
from secure_codream.threats.seizure import in_its_own_process, memory_of
from secure_codream.threats.switches import Switch

# -- randomness ---------------------------------------------


class Trace:
    """What was used where: keys of mask streams by client, keys and nonces of sealed messages, share polynomials."""

    def __init__(self) -> None:
        self.streams: dict[bytes, list[ClientProtocol]] = defaultdict(list)
        self.sealed: Counter[tuple[bytes, bytes]] = Counter()
        self.polynomials: Counter[bytes] = Counter()

    @property
    def repeats(self) -> int:
        """How many were used twice; a pairwise stream is used once by each of its two clients."""
        streams = sum(len(users) > len(set(users)) or len(users) > 2 for users in self.streams.values())
        return streams + sum(count > 1 for used in (self.sealed, self.polynomials) for count in used.values())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch all clients in this context."""
        masking: list[ClientProtocol] = []
        split, mask = shamir.split, ClientProtocol._mask
        sealed, polynomials, streams = self.sealed, self.polynomials, self.streams

        class Watched:
            def __init__(self, key: bytes) -> None:
                self._key, self._cipher = key, ChaCha20Poly1305(key)

            def encrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
                sealed[self._key, nonce] += 1
                return self._cipher.encrypt(nonce, data, additional)

            def decrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
                return self._cipher.decrypt(nonce, data, additional)

        def watched_mask(self: ClientProtocol, *arguments: Any) -> bytes:
            masking[:] = [self]
            return mask(self, *arguments)

        def watched_add(vector: Vector, key: bytes, **options: Any) -> None:
            streams[key].append(masking[0])
            add_mask(vector, key, **options)

        def watched_split(rows: Vector, threshold: int, points: list[int], draw: Callable[[int], bytes]) -> Any:
            def drawn(count: int) -> bytes:
                data = draw(count)
                coefficients = np.frombuffer(data, dtype=np.uint8).reshape(threshold - 1, *rows.shape)
                polynomials.update(coefficients[:, item].tobytes() for item in range(len(rows)))
                return data

            return split(rows, threshold, points, drawn)

        with (
            patch.multiple(client_module, add_mask=watched_add, ChaCha20Poly1305=Watched),
            patch.object(ClientProtocol, "_mask", watched_mask),
            patch.object(shamir, "split", watched_split),
        ):
            yield


class RepeatedRandomness(Attack):
    """Look for anything that is used twice."""

    name = "repeated-randomness"
    adversary = "whoever sees the traffic"
    goal = "Find a mask stream, a nonce under one key, or a share polynomial that is used twice."
    paper = "Ristenpart and Yilek, NDSS 2010 (virtual machine reset)"
    promises = ("P12",)
    defences = ("fresh-randomness",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Record two epochs with a dropout; the control's generators start again with each, as after a snapshot."""
        federation, trace = laboratory.federation(defences), Trace()
        with trace.recording():
            for epoch in range(2):
                if not defences.stands("fresh-randomness"):
                    for member, client in enumerate(federation.clients):
                        client._random = random.Random(member).randbytes  # noqa: S311 - a broken generator
                federation.plan = msgspec.structs.replace(federation.plan, epoch=epoch)
                federation.server = ServerEpoch(federation.plan, federation.roster)
                if not federation.set_up():
                    raise Stuck(f"the set-up failed: {federation.failures}")
                gone = (VICTIM, MaskedInput) if laboratory.cohort.spare else None
                for step in range(federation.plan.steps):
                    if federation.step(lost={gone} if gone and step == 1 else ()) is None:
                        raise Stuck(f"a step failed: {federation.failures}")
        looked_at = (
            f"{len(trace.streams)} mask streams, {len(trace.sealed)} sealed messages and {len(trace.polynomials)}"
        )
        return Evidence(
            measure="mask streams, nonces and share polynomials used twice, number",
            value=float(trace.repeats),
            success=0.0,
            learned=f"of {looked_at} sharings, {trace.repeats or 'none'} used twice",
        )


class MaskedBytes(Attack):
    """Statistics on what goes over the wire."""

    name = "masked-bytes-distinguished"
    adversary = "malicious server"
    goal = "Tell masked inputs from uniform bytes by their frequencies, their bits, and pairs of neighbours."
    paper = "NIST SP 800-22 (frequency and serial tests)"
    promises = ("P12",)
    defences = ("masks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Pack every client's masked vector and test the bytes."""
        length = 16_000 if laboratory.quick else 256_000
        specs = (VectorSpec("update", (Block("dream", length, 1.0),)),)
        federation = laboratory.federation(defences, specs=specs, steps=1, policy=None).masked()
        frames = [item.frames[0] for item in federation.sent if item.kind is MaskedInput]
        data = np.frombuffer(b"".join(frames), dtype=np.uint8)
        tests = {"bytes": byte_frequencies(data), "bits": bit_balance(data), "pairs": neighbours(data)}
        smallest = min(1.0, len(tests) * min(tests.values()))  # Bonferroni
        value = max(0.0, min(300.0, -math.log10(smallest))) if smallest else 300.0
        shown = ", ".join(f"{name} p = {p:.2g}" for name, p in tests.items())
        return Evidence(
            measure="evidence against uniform bytes, -log10 of the corrected p-value",
            value=value,
            success=6.0,
            learned=f"of {len(data):,} bytes the tests for uniform ones say: {shown}",
        )


def byte_frequencies(data: Vector) -> float:
    """P-value of the bytes' frequencies, by a chi-square test with 255 degrees of freedom."""
    return chi_square(np.bincount(data, minlength=256))


def bit_balance(data: Vector) -> float:
    """P-value of the number of ones among the bits."""
    count = data.size * 8
    return math.erfc(abs(2 * int(np.unpackbits(data).sum()) - count) / math.sqrt(2 * count))


def neighbours(data: Vector) -> float:
    """P-value of the frequencies of disjoint pairs of neighbouring bytes' upper halves."""
    halves = data[: data.size // 2 * 2] >> 4
    return chi_square(np.bincount(halves[::2] * 16 + halves[1::2], minlength=256))


def chi_square(counts: Vector) -> float:
    """P-value that these counts are of a uniform distribution (Wilson and Hilferty's approximation)."""
    expected, degrees = counts.sum() / counts.size, counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    return math.erfc((math.cbrt(statistic / degrees) - (1 - spread)) / math.sqrt(2 * spread)) / 2


# -- memory ---------------------------------------------


def buffers(root: object) -> Iterator[bytes]:
    """Every run of bytes that can be reached from an object, as a search of its memory would find it."""
    seen, waiting = set(), [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.FunctionType):
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            yield bytes(item)
        elif isinstance(item, np.ndarray):
            yield item.tobytes()
        waiting += gc.get_referents(item)


def some(names: list[str]) -> str:
    """A few of these names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def step_secrets(federation: Federation, member: int) -> dict[str, bytes]:
    """The secrets of step 0 that a client holds before it: its own, and its shares of everybody's."""
    epoch = federation.clients[member]._epoch
    if epoch is None:
        raise Stuck("the set-up failed")
    keys = StepKeys(epoch.seed, epoch.digest, 0)
    own = {"seed": epoch.seed.reveal(), "self mask": keys.self_mask.reveal(), "mask key": keys.mask_private.reveal()}
    shares = {
        f"{kind} share of member {whose}": held.row(row * epoch.plan.steps)
        for whose, held in epoch.held.items()
        for row, kind in enumerate(("self-mask", "mask-key"))
    }
    return {**own, **shares}


class MemoryAfterStep(Attack):
    """A client's program is taken over once its step is over."""

    name = "memory-after-a-step"
    adversary = "whoever takes a client over"
    goal = "Find in the client's memory, after a step, its seed or shares of that step, and rebuild its masks."
    paper = "Bellare and Yee, CT-RSA 2003 (forward security)"
    promises = ("P11",)
    defences = ("erasure",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Note the secrets before the step, and look for them in everything that the client can reach after it."""
        federation = laboratory.federation(defences)
        federation.set_up()
        held = step_secrets(federation, VICTIM)
        if federation.step() is None:
            raise Stuck(f"the step failed: {federation.failures}")
        federation.clients[VICTIM]._random = bytes  # the laboratory's own generator is no part of a client
        answer = federation.clients[VICTIM]._epoch
        if answer is not None and answer.step is not None:
            answer.step.answer = None  # what was sent to the server is in its hands anyway
        memory = list(buffers(federation.clients[VICTIM]))
        found = [name for name, secret in held.items() if any(secret in piece for piece in memory)]
        return Evidence(
            measure=f"secrets of a finished step found in the client's objects, of {len(held)}",
            value=float(len(found)),
            success=0.0,
            learned=f"{some(found)}, in {len(memory)} runs of bytes"
            if found
            else f"nothing: {len(memory)} runs of bytes, and none of the step's {len(held)} secrets among them",
        )


class ProcessMemoryAfterStep(Attack):
    """A client's machine is seized once a step is over, and its memory is read from outside: a core file."""

    name = "process-memory-after-a-step"
    adversary = "whoever seizes a client's machine"
    goal = "Find in the raw memory of the client's process, after a step, what only the client knew of that step."
    paper = "Halderman et al., USENIX Security 2008 (cold boot)"
    promises = ("P11",)
    defences = ("erasure",)
    quick = False

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Search all writable memory, freed and unreachable copies included, for secrets known from a twin's run."""
        twin = laboratory.federation()
        twin.set_up()
        sent_anyway = "self-mask share"  # in the client's answer to the server
        held = {name: key for name, key in step_secrets(twin, VICTIM).items() if not name.startswith(sent_anyway)}
        found, searched = set[str](), 0
        with in_its_own_process(laboratory, defences, VICTIM) as (federation, process):
            if not (federation.set_up() and federation.step() is not None):
                raise Stuck(f"no step: {federation.failures}")
            for mapping in memory_of(process):
                searched += len(mapping)
                found.update(name for name, secret in held.items() if secret in mapping)
        return Evidence(
            measure=f"secrets of a finished step in the process's memory, of {len(held)}",
            value=float(len(found)),
            success=0.0,
            learned=f"{some([name for name in held if name in found])}, in {searched >> 20} MiB of raw memory"
            if found
            else f"nothing: {searched >> 20} MiB of raw memory hold none of the step's {len(held)} secrets",
        )


class SeizedMidStep(Attack):
    """A client is taken over before it has masked."""

    name = "seized-before-masking"
    adversary = "whoever takes a running client over"
    goal = "Read the current step's seed, and with it unmask the client's input of that step."
    promises = ("L5",)
    defences = ("before-the-step",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Take the seed that lies in memory, before the step, or for the control after it."""

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            federation.set_up()
            epoch = federation.clients[VICTIM]._epoch
            if epoch is None:
                raise Stuck("the set-up failed")
            in_time = Secret(epoch.seed.reveal())
            federation.begin_step()
            federation.drain(lost={(member, Survivors) for member in all_but(federation)})
            seed = in_time if defences.stands("before-the-step") else epoch.seed
            keys = StepKeys(seed, federation.plan.digest, 0)
            self_masks, mask_keys = {VICTIM: keys.self_mask.reveal()}, {VICTIM: keys.mask_private.reveal()}
            return open_sum(federation, 0, [VICTIM], self_masks, mask_keys), federation.vectors[0, VICTIM]

        return recovered(attempt, whose="the current step's input")


# -- output ---------------------------------------------


class SecretsInOutput(Attack):
    """Everything that a party says: logs, events, answers, errors, and what its objects say of themselves."""

    name = "secrets-in-output"
    adversary = "whoever reads logs, errors and reports"
    goal = "Find a key, a seed or a share in logs, events, refusals, errors, or in what objects say of themselves."
    promises = ("P13",)
    defences = ("hidden-reprs",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Run a federation over the network with a member that sends garbage, and one in memory; search their words."""
        drawn: list[bytes] = []

        def random_bytes(count: int) -> bytes:
            drawn.append(secrets.token_bytes(count))
            return drawn[-1]

        net = network.connected(laboratory)
        garbage = list(hostile_messages(bytes(64), laboratory.random(self.name)).values())

        def tamper(send: Send) -> list[list[bytes]]:
            return [*([data] for data in garbage), honest(send)]

        network.federate(net, laboratory, of_all={"random_bytes": random_bytes}, tamper=tamper)
        federation = laboratory.federation(defences)
        for client in federation.clients:
            client._random = random_bytes
        federation.masked()
        for client in federation.clients:
            epoch = client._epoch
            if epoch is not None:
                drawn += [held.row(row) for held in epoch.held.values() for row in range(len(held))]
                drawn.append(epoch.seed.reveal())
        words = [json.dumps(net.events, default=repr), repr(net.logs), *_refusals(federation)]
        for member in all_but(federation):
            federation.emit(federation.server.receive(member, announce(federation, member, all_but(federation))))
        words += [word for party in (*federation.clients, federation.server) for word in _words(party)]
        text = "\n".join(dict.fromkeys(words))
        needles = {secret for secret in (*drawn, *net.identities, *(key for _, key in net.keys)) if len(secret) >= 16}
        found = sum(any(form in text for form in _forms(secret)) for secret in needles)
        return Evidence(
            measure=f"secrets found in what was said or logged, of {len(needles)}",
            value=float(found),
            success=0.0,
            learned=f"{found} of {len(needles)} secrets"
            if found
            else f"nothing: {len(text):,} characters hold none of {len(needles)} secrets",
        )


class SecretsInFiles(Attack):
    """Everything that a run leaves on disk."""

    name = "secrets-in-files"
    adversary = "whoever gets a run's folder, but for the key files"
    goal = "Find a key, a seed or a share in a run's logs, events, models, statements, summary, exhibit or report."
    promises = ("P13",)
    defences = ("hidden-reprs",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Run a federation into a scratch folder, whose clients log all that they hold, as debugging might; search."""
        needles: set[bytes] = set()
        send = ClientRunner._send

        def random_bytes(count: int) -> bytes:
            drawn = secrets.token_bytes(count)
            needles.add(drawn)
            return drawn

        async def talkative(self: ClientRunner, effect: Send) -> None:
            epoch = self._protocol._epoch
            if epoch is not None and isinstance(effect.message, MaskedInput) and effect.message.step == 0:
                needles.update(held.row(row) for held in epoch.held.values() for row in range(len(held)))
                needles.add(epoch.seed.reveal())
                self._log.debug("holding", sends=repr(effect), client=list(_words(self._protocol)))
            await send(self, effect)

        with TemporaryDirectory() as scratch, patch.object(ClientRunner, "_send", talkative):
            run = write_run(Path(scratch), seed=laboratory.seed, random_bytes=random_bytes)
            needles |= {bytes.fromhex(path.read_text()) for path in run.path.rglob("*.key")}
            written = {path.relative_to(run.path): text(data) for path, data in contents(run.path)}
        long = {secret for secret in needles if len(secret) >= 16}
        found = {
            secret: path
            for secret in long
            for path, words in written.items()
            if any(f in words for f in _forms(secret))
        }
        return Evidence(
            measure=f"secrets found in a run's files, of {len(long)}",
            value=float(len(found)),
            success=0.0,
            learned=f"{len(found)} of {len(long)} secrets, in {some(sorted({path.name for path in found.values()}))}"
            if found
            else f"nothing: {len(written)} files, {sum(map(len, written.values())):,} characters, hold none of "
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


def _refusals(federation: Federation) -> Iterator[str]:
    """What clients answer to messages that contradict what they were told, errors' causes included."""
    for member, client in enumerate(federation.clients):
        for message in (
            Survivors(federation.plan.digest, 0, (0, 1)),
            Survivors(bytes(32), 0, all_but(federation)),
            PlanOffer(msgspec.structs.replace(federation.plan, epoch=1, threshold=1)),
        ):
            try:
                federation.tell(member, message)
            except ProtocolError as error:
                cause: BaseException | None = error
                while cause is not None:
                    yield f"{cause!r} {cause} {vars(cause)}"
                    cause = cause.__cause__
            else:
                raise Stuck(f"{client} took {message}")


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


SWITCHES = {
    "fresh-randomness": Switch("Every draw of a client's generator is new; the control's starts again each epoch."),
    "before-the-step": Switch("The control's adversary comes after the step."),
}

ATTACKS: tuple[Attack, ...] = (
    RepeatedRandomness(),
    MaskedBytes(),
    MemoryAfterStep(),
    ProcessMemoryAfterStep(),
    SeizedMidStep(),
    SecretsInOutput(),
    SecretsInFiles(),
    TimedComparison(),
)
