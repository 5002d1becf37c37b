"""What an implementation may give away of a sound protocol: randomness, statistics, memory; and what it may cost.

Nothing is drawn twice, masked bytes look uniform, a step's secrets are gone from memory after it, and whoever sends a
message pays about as much for it as its receiver.
"""

from __future__ import annotations

import gc
import math
import random
import time
import tracemalloc
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import msgpack
import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import client as client_module
from codream_protocols import hybrid, messages, shamir
from codream_protocols import lockstep as lockstep_module
from codream_protocols.charter import MAX_STEPS
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import ProtocolError
from codream_protocols.identity import MAX_MEMBERS, MAX_SIGNED_MEMBERS
from codream_protocols.keyschedule import StepKeys
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.masks import add_mask, add_masks
from codream_protocols.messages import (
    MAX_MESSAGE_BYTES,
    Advertisement,
    MaskedInput,
    StepRecord,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.packing import unpack
from codream_protocols.resilient import ResilientKeys
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.clients import alone
from secure_codream.threats.attacks.dropouts import VICTIM, lockstep
from secure_codream.threats.laboratory.adversary import masked_input, reduce
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, numbered, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.seizure import in_its_own_process, memory_of
from secure_codream.threats.laboratory.switches import Switch

# -- randomness ---------------------------------------------


class Trace:
    """What was used where: keys of mask streams by client, keys and nonces of seals, share polynomials, public keys."""

    def __init__(self) -> None:
        self.streams: dict[bytes, list[ClientProtocol]] = defaultdict(list)
        self.sealed: Counter[tuple[bytes, bytes]] = Counter()
        self.polynomials: Counter[bytes] = Counter()
        self.public: Counter[bytes] = Counter()

    @property
    def repeats(self) -> int:
        """How many were used twice; a pairwise stream is used once by each of its two clients."""
        streams = sum(len(users) > len(set(users)) or len(users) > 2 for users in self.streams.values())
        used_once = (self.sealed, self.polynomials, self.public)
        return streams + sum(count > 1 for used in used_once for count in used.values())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch all clients in this context."""
        masking: list[ClientProtocol] = []
        split, provide, advertise = shamir.split, ClientProtocol.provide, LockstepKeys.advertise
        sealed, polynomials, streams, public = self.sealed, self.polynomials, self.streams, self.public

        class Watched:
            def __init__(self, key: bytes) -> None:
                self._key, self._cipher = key, ChaCha20Poly1305(key)

            def encrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
                sealed[self._key, nonce] += 1
                return self._cipher.encrypt(nonce, data, additional)

            def decrypt(self, nonce: bytes, data: bytes, additional: bytes) -> bytes:
                return self._cipher.decrypt(nonce, data, additional)

        def watched_provide(self: ClientProtocol, *arguments: Any) -> Any:
            masking[:] = [self]
            return provide(self, *arguments)

        def watched_add(vector: Vector, keys: Sequence[tuple[bytes, bool]], **options: Any) -> None:
            for key, _ in keys:
                streams[key].append(masking[0])
            add_masks(vector, keys, **options)

        def watched_split(rows: Vector, threshold: int, points: list[int], draw: Callable[[int], bytes]) -> Any:
            def drawn(count: int) -> bytes:
                data = draw(count)
                coefficients = np.frombuffer(data, dtype=np.uint8).reshape(threshold - 1, *rows.shape)
                polynomials.update(coefficients[:, item].tobytes() for item in range(len(rows)))
                return data

            return split(rows, threshold, points, drawn)

        def watched_advertise(self: LockstepKeys, signer: Any) -> Advertisement:
            item = advertise(self, signer)
            public.update((item.share_key, item.kem_key))
            return item

        with (
            patch.object(client_module, "add_masks", watched_add),
            patch.object(lockstep_module, "ChaCha20Poly1305", Watched),
            patch.object(ClientProtocol, "provide", watched_provide),
            patch.object(LockstepKeys, "advertise", watched_advertise),
            patch.object(shamir, "split", watched_split),
        ):
            yield


class RepeatedRandomness(Attack):
    """Look for anything that is used twice."""

    name = "repeated-randomness"
    adversary = "whoever sees the traffic"
    goal = "Find a mask stream, a nonce under one key, a public key or a share polynomial that is used twice."
    paper = "Ristenpart and Yilek, NDSS 2010 (virtual machine reset)"
    promises = ("P12",)
    defences = ("fresh-randomness",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Record two epochs in either mode, with a dropout where the mode bears one.

        The control's generators start again with each epoch, as after a snapshot.
        """
        trace = Trace()
        with trace.recording():
            for number, mode in enumerate(ways_to_sum(laboratory)):
                federation = laboratory.federation(defences, mode=mode, seed=laboratory.seed + number)
                droppable = mode == "resilient" and len(laboratory.cohort.blocks) > 1
                gone: set[tuple[int, type]] = {(VICTIM, MaskedInput)} if droppable else set()
                for _ in range(2):
                    if not defences.stands("fresh-randomness"):
                        for member, tape in enumerate(federation.tapes):
                            tape.draw = random.Random(member).randbytes  # noqa: S311 - a broken generator
                    _whole_epoch(federation, gone)
        looked_at = (
            f"{len(trace.streams)} mask streams, {len(trace.sealed)} seals, {len(trace.public)} public keys and "
            f"{len(trace.polynomials)} sharings"
        )
        return Evidence(
            measure="mask streams, nonces, public keys and share polynomials used twice, number",
            value=float(trace.repeats),
            success=0.0,
            learned=f"of {looked_at}, {trace.repeats or 'none'} used twice",
        )


def ways_to_sum(laboratory: Laboratory) -> tuple[str, ...]:
    """Both ways to sum; of a user's own charter, its way."""
    return ("lockstep", "resilient") if laboratory.cohort.charter is None else (laboratory.cohort.mode,)


def _whole_epoch(federation: Federation, gone: set[tuple[int, type]]) -> None:
    """An epoch, in whose second step these messages are lost."""
    if not federation.set_up():
        raise Stuck(f"the set-up failed: {federation.failures}")
    for step in range(federation.plan.steps):
        if federation.step(lost=gone if step == 1 else ()) is None:
            raise Stuck(f"a step failed: {federation.failures}")
    if federation.finish() is None:
        raise Stuck("the epoch was not certified")


class MaskedBytes(Attack):
    """Statistics on what goes over the wire."""

    name = "masked-bytes-distinguished"
    adversary = "malicious server"
    goal = "Tell masked inputs from uniform bytes by their frequencies, their bits, and pairs of neighbours."
    paper = "NIST SP 800-22 (frequency and serial tests)"
    promises = ("P12",)
    defences = ("masks",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Test the bits of every client's masked elements, m of each, joined to bytes."""
        length = 16_000 if laboratory.quick else 256_000
        specs = (VectorSpec("update", (Block("dream", length, 1.0),)),)
        federation = laboratory.federation(defences, specs=specs, steps=1).masked()
        places = np.arange(federation.plan.modulus_bits(0), dtype=np.uint32)
        masked = (
            unpack(item.frames[0], length, len(places)).astype(np.uint32)
            for item in federation.sent
            if item.kind is MaskedInput
        )
        data = np.concatenate([np.packbits((words[:, None] >> places & 1).astype(np.uint8)) for words in masked])
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


def some(names: Sequence[str]) -> str:
    """A few of these names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def step_secrets(federation: Federation, member: int) -> dict[str, bytes]:
    """The secrets of step 0 that a client holds before it: its pairs' roots, or its own seed and everybody's shares."""
    epoch = federation.clients[member]._epoch
    if epoch is None:
        raise Stuck("the set-up failed")
    if not isinstance(epoch.keys, ResilientKeys):
        return {f"root shared with member {other}": root.reveal() for other, root in epoch.keys._roots.items()}
    keys = StepKeys(epoch.keys._seed, epoch.plan.digest, 0)
    own = {
        "seed": epoch.keys._seed.reveal(),
        "self mask": keys.self_mask.reveal(),
        "mask key": keys.mask_private.reveal(),
    }
    shares = {
        f"{kind} share of member {whose}": held.row(row * epoch.plan.steps)
        for whose, held in epoch.keys._held.items()
        for row, kind in enumerate(("self-mask", "mask-key"))
    }
    return {**own, **shares}


def leave_the_laboratory(client: ClientProtocol) -> None:
    """The laboratory's own generator, which keeps what it drew, is no part of a client."""
    client._random = bytes
    if client._epoch is not None:
        client._epoch.keys._random = bytes


class MemoryAfterStep(Attack):
    """A client's program is taken over once its step is over."""

    name = "memory-after-a-step"
    adversary = "whoever takes a client over"
    goal = "Find in the client's memory, after a step, its roots, seed or shares of that step, and rebuild its masks."
    paper = "Bellare and Yee, CT-RSA 2003 (forward security)"
    promises = ("P11",)
    defences = ("erasure",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Note the secrets before the step, and look for them in everything that the client can reach after it."""
        found: list[str] = []
        looked_for = runs = 0
        for mode in ways_to_sum(laboratory):
            federation = laboratory.federation(defences, mode=mode)
            federation.set_up()
            held = step_secrets(federation, VICTIM)
            if federation.step() is None:
                raise Stuck(f"the step failed: {federation.failures}")
            client = federation.clients[VICTIM]
            leave_the_laboratory(client)
            memory = list(buffers(client))
            found += [name for name, secret in held.items() if any(secret in piece for piece in memory)]
            looked_for, runs = looked_for + len(held), runs + len(memory)
        return _secrets_in("the client's objects", found, looked_for, f"{runs} runs of bytes")


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
        seen = [name for name in held if name in found]
        return _secrets_in("the process's memory", seen, len(held), f"{searched >> 20} MiB of raw memory")


def _secrets_in(place: str, found: Sequence[str], looked_for: int, searched: str) -> Evidence:
    """The secrets of a finished step that were found in a place, of so many, and how much was searched."""
    return numbered(
        f"secrets of a finished step found in {place}, of {looked_for}",
        len(found),
        found=f"{some(found)}, in {searched}",
        otherwise=f"nothing: {searched} hold none of the step's {looked_for} secrets",
    )


class SeizedMidStep(Attack):
    """A client is taken over before it has masked."""

    name = "seized-before-masking"
    adversary = "whoever takes a running client over"
    goal = "Read the roots of the current step, and with them unmask the client's input of that step."
    promises = ("L5",)
    defences = ("before-the-step",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Take the roots that lie in memory, before the step, or for the control after it."""

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences)
            federation.set_up()
            epoch = federation.clients[VICTIM]._epoch
            if epoch is None or epoch.public is None:
                raise Stuck("the set-up failed")
            in_time = {other: root.reveal() for other, root in epoch.keys._roots.items()}
            chain = epoch.public.chain
            federation.compute()
            late = {other: root.reveal() for other, root in epoch.keys._roots.items()}
            opened = masked_input(federation, 0, VICTIM)
            for other, root in (in_time if defences.stands("before-the-step") else late).items():
                key = hybrid.pair_mask_key(root, 0, chain)
                add_mask(opened, key, suite=federation.plan.aggregation.suite, negative=other > VICTIM)
            return reduce(federation, opened), federation.vectors[0, VICTIM]

        return recovered(attempt, whose="the current step's input")


# -- cost ---------------------------------------------

MOST_SECONDS, MOST_TIMES, LEAST_BYTES, SENT_BYTES = 0.05, 2.0, 1 << 17, 1 << 16


def expensive_messages(size: int) -> dict[str, bytes]:
    """Messages of about `size` bytes, cheap to send, and dear to whoever builds a tree of objects of them."""
    entries, key = size.to_bytes(4, "big"), b"\xc4\x20" + bytes(32)
    vote = b"\x92\x00\xc4\x40" + bytes(64)
    votes = size // len(vote)
    return {
        "an array of empty arrays": b"\xdd" + entries + b"\x90" * size,
        "a beat whose plan is such an array": b"\x93\xa4beat\xdd" + entries + b"\x90" * size + b"\x00",
        "survivors without end": b"\x94\xa9survivors" + key + b"\x00\xdd" + entries + bytes(size),
        "votes without end": b"\x93\xabcertificate" + key + b"\xdd" + votes.to_bytes(4, "big") + vote * votes,
    }


def long_lists(size: int) -> dict[str, bytes]:
    """Messages of about `size` bytes that the largest federation might send, dear to whoever makes objects of them."""
    entries, key = size.to_bytes(4, "big"), b"\xc4\x20" + bytes(32)
    cohort = b"\x93\x00\xdd" + entries + bytes(size) + key
    return {
        "an invitation of so many, to the client": b"\x92\xaainvitation" + cohort,
        "a record of so many, to the server": b"\x96\xacepoch-record" + cohort + b"\xc0" * 4,
        **{
            f"{how} of so many, to the client": expensive_messages(size)[f"{how} without end"]
            for how in ("survivors", "votes")
        },
    }


def cost(call: Callable[[], Any]) -> tuple[float, int]:
    """What a call that is refused costs: seconds of the processor, the best of three, and the most memory at a time."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        with suppress(ProtocolError):
            call()
        seconds.append(time.process_time() - started)
    tracemalloc.start()
    try:
        with suppress(ProtocolError):
            call()
        return min(seconds), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class ExpensiveMessages(Attack):
    """Bytes that cost the receiver far more than the sender."""

    name = "expensive-messages"
    adversary = "malicious client, or server"
    goal = "Cost a party more than a twentieth of a second, or twice a message's size of memory, before it refuses it."
    paper = "Crosby and Wallach, USENIX Security 2003 (algorithmic complexity)"
    promises = ("P8",)
    defences = ("schema", "phase-limit", "steps-limit", "lists-limit")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Small ones, within the largest limit there is; and a record of far more steps than the course has.

        Any message may cost an eighth of a megabyte. Times are of the processor: other programs run beside this one.
        """
        server = laboratory.federation().server
        limit, members = server.largest_message, server.charter.members
        entries = {
            f"{how}, to the {side}": (data, MAX_MESSAGE_BYTES, decode, "schema")
            for how, data in expensive_messages(SENT_BYTES).items()
            for side, decode in (("server", decode_to_server), ("client", decode_to_client))
        }
        for how, data in long_lists(SENT_BYTES).items():
            decode = decode_to_server if how.endswith("server") else decode_to_client
            entries[how] = data, MAX_MESSAGE_BYTES, decode, "lists-limit"
        record, full = _records(laboratory, limit)
        for side, decode in (("server", decode_to_server), ("client", decode_to_client)):
            entries[f"a record of {MAX_STEPS} steps, to the {side}"] = (record, limit, decode, "phase-limit")
            entries[f"steps in a record instead of keys, to the {side}"] = (full, limit, decode, "steps-limit")

        def attempt(
            data: bytes, most: int, decode: Callable[[bytes, int, int, int], Any], defence: str, standing: Defences
        ) -> bool:
            with alone(standing, {"schema": _tree_first}):
                allowed = most if standing.stands("phase-limit") else MAX_MESSAGE_BYTES
                bounded = defence == "steps-limit" and standing.stands(defence)
                steps = len(server.course.schedule(0)) if bounded else MAX_STEPS
                listed = defence != "phase-limit" and standing.stands("lists-limit")  # it would stop the long record
                seconds, memory = cost(lambda: decode(data, allowed, members if listed else MAX_MEMBERS, steps))
            return seconds > MOST_SECONDS or memory > max(LEAST_BYTES, MOST_TIMES * len(data))

        tries = {
            how: Try(partial(attempt, data, most, decode, defence), (defence,))
            for how, (data, most, decode, defence) in entries.items()
        }
        return counted(tries, what="messages that cost too much", defences=defences)


def _tree_first() -> AbstractContextManager[Any]:
    """Messages are parsed into whatever they hold, and looked at only then."""
    typed = messages._decode

    def decode(decoder: Any, data: bytes, *most_bytes: int) -> Any:
        tree = None
        with suppress(ValueError, RecursionError):
            tree = msgpack.unpackb(data, strict_map_key=False)
        found = typed(decoder, data, *most_bytes)
        del tree
        return found

    return patch.object(messages, "_decode", decode)


def _records(laboratory: Laboratory, size: int) -> tuple[bytes, bytes]:
    """Two records that fit their schema, but for their last byte: the steps are what is large of them.

    One has as many steps as there can be, of as many members as a signed roster has; the other the size given, and
    numbers that are dear in memory.
    """
    federation = laboratory.federation()
    federation.epoch()
    record, _ = federation.certified[0].kept
    endless = (StepRecord(tuple(range(MAX_SIGNED_MEMBERS)), bytes(16)),) * MAX_STEPS
    full = msgspec.structs.replace(record, advertisements=record.advertisements[:1], votes=())
    room, dear = size - len(encode_message(full)), StepRecord((1_000,) * 500, bytes(16))
    steps = (dear,) * (room // len(msgspec.msgpack.encode(dear)))
    long, large = (msgspec.structs.replace(full, steps=its) for its in (endless, steps))
    return encode_message(long)[:-1] + b"\xc0", encode_message(large)[:-1] + b"\xc0"  # nothing for votes, which is last


SWITCHES = {
    "fresh-randomness": Switch("Every draw of a client's generator is new; the control's starts again each epoch."),
    "before-the-step": Switch("The control's adversary comes after the step."),
    "schema": Switch("Messages are decoded straight into typed fields with ranges, without a tree of objects first."),
    "phase-limit": Switch("A message larger than its phase allows is refused before it is parsed."),
    "lists-limit": Switch(
        "A message with more entries in a list than there are members is refused before it is parsed."
    ),
    "steps-limit": Switch("A record with more members in its steps than fit is refused before they are parsed."),
}

ATTACKS: tuple[Attack, ...] = (
    RepeatedRandomness(),
    MaskedBytes(),
    MemoryAfterStep(),
    ProcessMemoryAfterStep(),
    SeizedMidStep(),
    ExpensiveMessages(),
)
