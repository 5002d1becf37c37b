"""What hides one client behind another, tried by whoever has time: mask seeds searched, recorded traffic opened later.

Flower's `pseudo_rand_gen` (src/py/flwr/common/secure_aggregation/secaggplus_utils.py, read at commit 0c8e174c) folds a
shared secret of 256 bits to 32 by XOR and seeds NumPy's Mersenne Twister with it. Later sources of that file stretch
the secret with HMAC-SHA256 instead; the attack is on the construction, wherever it is still in use.

Who records traffic today may break one of its primitives in years to come. `Broken` stands for that day: it knows the
private part of every public key of one kind that was ever on the wire. With X25519 CurveZMQ falls too, so recorded
traffic is what the machines said, in clear.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import hybrid, keyschedule
from codream_protocols.hybrid import KemKey
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import add_mask
from codream_protocols.messages import Advertisement, Seal, SealDelivery, UnmaskShares
from secure_codream.simulation.packets import of_kind
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.clients import alone
from secure_codream.threats.attacks.dropouts import lockstep
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import LEAST_RECOVERED, Try, Vector, counted, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.switches import Switch

VICTIM, PARTNER, COLLUDER = range(3)
SECONDS_OF_A_YEAR = 365.25 * 86_400
FLOWER_RING, FLOWER_RANGE = 1 << 32, 1 << 22  # secaggplus's defaults: modulus, and range of a quantised value
CONSTANT = bytes(32)  # what takes a secret's place where one half of the agreement is left out


# -- mask seeds ---------------------------------------------


class MaskSeedSearch(Attack):
    """Try one mask seed after the other until what is left looks like an input."""

    name = "mask-seed-search"
    adversary = "server with one colluder of three clients"
    goal = "Find the one mask that still hides the victim's vector by searching the space of its seeds."
    paper = "Flower's secaggplus, pseudo_rand_gen at commit 0c8e174c"
    promises = ("P12",)
    defences = ("256-bit-mask-keys",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Search 2^16 seeds (2^20 when not quick); the control's masks are Flower's, from so small a space."""
        bits = 16 if laboratory.quick else 20
        construction = ours if defences.stands("256-bit-mask-keys") else flowers
        hidden, truth, limit, streams = construction(laboratory, bits)
        found, tried, seconds = search(hidden, limit, streams)
        share = 0.0 if found is None else float(np.mean(found == truth))
        rate = tried / seconds
        if found is None:
            years = 256 * math.log10(2) - math.log10(rate * SECONDS_OF_A_YEAR)
            learned = (
                f"nothing: none of 2^{bits} keys fits, at {rate:,.0f} a second; all 2^256 take 10^{years:.0f} years"
            )
        else:
            hours = 2**32 / rate / 3600
            learned = (
                f"{share:.0%} of the victim's input after {tried:,} seeds at {rate:,.0f} a second; "
                f"all 2^32 take {hours:.0f} hours on one core"
            )
        return Evidence(
            measure="coordinates of the victim's input recovered by the search, share",
            value=share,
            success=LEAST_RECOVERED,
            learned=learned,
        )


Streams = Callable[[], Iterable[Vector]]


def search(hidden: Vector, limit: int, streams: Streams) -> tuple[Vector | None, int, float]:
    """Take one candidate mask after the other off, until every coordinate is a possible value.

    Returns:
        The input, if one was found; how many were tried; seconds.
    """
    started, tried = time.perf_counter(), 0
    for tried, candidate in enumerate(streams(), start=1):
        if int(candidate[0]) < limit and bool((candidate < limit).all()):
            return candidate, tried, time.perf_counter() - started
    return None, tried, time.perf_counter() - started


def flowers(laboratory: Laboratory, bits: int) -> tuple[Vector, Vector, int, Streams]:
    """Quantised values behind one mask of Flower's construction, whose seed has `bits` bits."""
    chance = laboratory.generator("mask-seed-search")
    values = chance.integers(0, FLOWER_RANGE, 20)
    secret = chance.integers(0, 256, KEY_BYTES, dtype=np.uint8).tobytes()
    folded = int(np.bitwise_xor.reduce(np.frombuffer(secret, dtype="<u4"))) % (1 << bits)
    hidden = (values + _twister(np.random.RandomState(), folded)) % FLOWER_RING

    def streams() -> Iterable[Vector]:
        generator = np.random.RandomState()
        for seed in range(1 << bits):
            yield (hidden - _twister(generator, seed)) % FLOWER_RING

    return hidden, values, FLOWER_RANGE, streams


def _twister(generator: np.random.RandomState, seed: int) -> Vector:
    generator.seed(seed)
    return generator.randint(0, FLOWER_RING - 1, 20, dtype=np.int64)


def ours(laboratory: Laboratory, bits: int) -> tuple[Vector, Vector, int, Streams]:
    """A real client's masked input, all masks taken off but the one that it shares with one honest partner."""
    federation = laboratory.federation(members=3, mode="lockstep")
    if not federation.set_up():
        raise Stuck(f"the set-up failed: {federation.failures}")
    colluder = federation.clients[COLLUDER]._epoch
    if colluder is None or colluder.public is None:
        raise Stuck("the colluder is in no epoch")
    key = hybrid.pair_mask_key(colluder.keys._roots[VICTIM].reveal(), 0, colluder.public.chain)
    federation.compute()
    hidden, suite = adversary.masked_input(federation, 0, VICTIM), federation.plan.aggregation.suite
    add_mask(hidden, key, suite=suite, negative=True)  # the victim, with the smaller number, added it
    hidden = adversary.reduce(federation, hidden)

    def streams() -> Iterable[Vector]:
        for seed in range(1 << bits):
            candidate = hidden.copy()
            add_mask(candidate, seed.to_bytes(KEY_BYTES, "little"), suite=suite, negative=True)
            yield adversary.reduce(federation, candidate)

    return hidden, federation.vectors[0, VICTIM], 1 << federation.plan.aggregation.value_bits, streams


# -- recorded traffic ---------------------------------------------


class Broken:
    """The day on which one primitive falls: whoever recorded public keys of its kind has their private parts.

    Keys that are made while it is `watching` are known; nothing else of any client is.
    """

    def __init__(self) -> None:
        self.exponents: dict[bytes, bytes] = {}  # X25519: public -> private
        self.seeds: dict[bytes, bytes] = {}  # ML-KEM: encapsulation key -> the key pair's seed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In this context keys are made whose private parts will be found."""
        public_key, made = keyschedule.public_key, KemKey.__init__

        def watched(private: bytes) -> bytes:
            public = public_key(private)
            self.exponents[public] = private
            return public

        def watched_kem(key: KemKey, seed: bytes) -> None:
            made(key, seed)
            self.seeds[key.public] = seed

        with patch.object(keyschedule, "public_key", watched), patch.object(KemKey, "__init__", watched_kem):
            yield

    def agreed(self, one: Advertisement, other: Advertisement) -> bytes:
        """X25519 of two recorded share keys."""
        return keyschedule.agree(self.exponents[one.share_key], other.share_key)

    def encapsulated(self, receiver: Advertisement, ciphertext: bytes) -> bytes:
        """The secret in a recorded KEM ciphertext."""
        return KemKey(self.seeds[receiver.kem_key]).decapsulate(ciphertext)


Agreed = Callable[[int, int], bytes]
"""What two members agreed on by X25519, as the adversary has it."""
Encapsulated = Callable[[int, int], bytes]
"""What one member encapsulated for another, as the adversary has it."""


def record(federation: Federation, broken: Broken) -> None:
    """Run a step in the open: afterwards `sent` holds all that was ever said."""
    with broken.watching():
        if not federation.set_up() or federation.step() is None:
            raise Stuck(f"there is no step to record: {federation.failures}")


def ciphertext_of(federation: Federation, sender: int, receiver: int) -> bytes:
    """The KEM ciphertext that one member sent another, off the wire."""
    return seal_of(federation, sender, receiver).kem


def seal_of(federation: Federation, sender: int, receiver: int) -> Seal:
    """What one member sealed for another, off the wire."""
    for item in of_kind(federation.sent, SealDelivery):
        message = item.message
        if item.member == receiver and isinstance(message, SealDelivery):
            return adversary.parcel(message, sender)
    raise Stuck(f"no seal of member {sender} for member {receiver} was recorded")


def open_lockstep(federation: Federation, agreed: Agreed, encapsulated: Encapsulated) -> Vector:
    """The victim's input of step 0 from recorded traffic, if these are the secrets behind its masks."""
    shown = adversary.advertisements(federation)
    transcript, chain = adversary.transcript_of(federation, shown), adversary.chain_of(federation, 0)
    opened = adversary.masked_input(federation, 0, VICTIM)
    for other in federation.everybody:
        if other == VICTIM:
            continue
        low, high = sorted((VICTIM, other))
        root = hybrid.pair_root(
            agreed(VICTIM, other),
            encapsulated(low, high),
            encapsulated(high, low),
            transcript=transcript,
            pair=(VICTIM, other),
        )
        key = hybrid.pair_mask_key(root, 0, chain)
        add_mask(opened, key, suite=federation.plan.aggregation.suite, negative=low == VICTIM)
    return adversary.reduce(federation, opened)


def open_resilient(federation: Federation, broken: Broken) -> Vector:
    """The victim's input of step 0 from recorded traffic of the resilient mode, with every X25519 key's private part.

    Its pair masks follow from the mask keys, its self mask from the shares that the members gave in answer.
    """
    shown, plan = adversary.advertisements(federation), federation.plan
    transcript, chain = adversary.transcript_of(federation, shown), adversary.chain_of(federation, 0)
    answers = {
        item.member: item.message
        for item in of_kind(federation.sent, UnmaskShares)
        if isinstance(item.message, UnmaskShares)
    }
    opened = adversary.masked_input(federation, 0, VICTIM)
    adversary.take_off_self_mask(federation, opened, adversary.rebuild(federation, answers)[VICTIM], 0)
    for other in federation.everybody:
        if other == VICTIM:
            continue
        key = keyschedule.pairwise_mask_key(
            broken.exponents[shown[VICTIM].mask_key(0)],
            shown[other].mask_key(0),
            plan=plan.digest,
            transcript=transcript,
            step=0,
            broadcast=chain,
            pair=(VICTIM, other),
        )
        add_mask(opened, key, suite=plan.aggregation.suite, negative=other > VICTIM)
    return adversary.reduce(federation, opened)


def _recorded(laboratory: Laboratory) -> tuple[Federation, Broken, dict[int, Advertisement]]:
    """A step in lockstep, recorded, what will fall of it, and what its members advertised."""
    federation, broken = lockstep(laboratory, Defences()), Broken()
    record(federation, broken)
    return federation, broken, adversary.advertisements(federation)


def _after_x25519(laboratory: Laboratory, standing: Defences) -> bool:
    with alone(standing, HALVES):
        federation, broken, shown = _recorded(laboratory)
        opened = open_lockstep(
            federation,
            lambda one, other: broken.agreed(shown[one], shown[other]),
            lambda sender, receiver: CONSTANT,
        )
    return _is_open(federation, opened)


def _after_kem(laboratory: Laboratory, standing: Defences) -> bool:
    with alone(standing, HALVES):
        federation, broken, shown = _recorded(laboratory)
        opened = open_lockstep(
            federation,
            lambda one, other: CONSTANT,
            lambda sender, receiver: broken.encapsulated(shown[receiver], ciphertext_of(federation, sender, receiver)),
        )
    return _is_open(federation, opened)


def _one_way(weak: Callable[[int], bool], laboratory: Laboratory, standing: Defences) -> bool:
    """X25519 falls, and some members' generators were weak: what others encapsulated to their KEM keys opens too."""
    with alone(standing, HALVES):
        federation, broken, shown = _recorded(laboratory)

        def encapsulated(sender: int, receiver: int) -> bytes:
            if standing.stands("sound-kem-keys") and not weak(receiver):
                return CONSTANT
            return broken.encapsulated(shown[receiver], ciphertext_of(federation, sender, receiver))

        opened = open_lockstep(federation, lambda one, other: broken.agreed(shown[one], shown[other]), encapsulated)
    return _is_open(federation, opened)


def _sealed_values(laboratory: Laboratory, standing: Defences) -> bool:
    """X25519 falls: the value that the victim sealed, of which the group key is made, opens."""
    with alone(standing, HALVES):
        federation, broken = lockstep(laboratory, Defences()), Broken()
        record(federation, broken)
        shown, plan = adversary.advertisements(federation), federation.plan.digest
        transcript = adversary.transcript_of(federation, shown)
        other = next(member for member in federation.everybody if member != VICTIM)
        seal = seal_of(federation, VICTIM, other)
        key = hybrid.seal_key(
            broken.agreed(shown[VICTIM], shown[other]),
            CONSTANT,
            transcript=transcript,
            sender=VICTIM,
            receiver=other,
            ciphertext=seal.kem,
        )
        additional = keyschedule.labelled("sealed", plan, bytes([VICTIM, other]))
        try:
            value = ChaCha20Poly1305(key).decrypt(bytes(12), seal.ciphertext, additional)
        except InvalidTag:
            return False
    return hybrid.commit(plan, VICTIM, value) == shown[VICTIM].commitment


def _is_open(federation: Federation, opened: Vector) -> bool:
    return float(np.mean(opened == federation.vectors[0, VICTIM])) > LEAST_RECOVERED


WAYS: Mapping[str, tuple[Callable[[Laboratory, Defences], bool], str]] = {
    "X25519 falls": (_after_x25519, "ml-kem-part"),
    "X25519 falls: what was sealed": (_sealed_values, "ml-kem-part"),
    "ML-KEM-768 falls": (_after_kem, "x25519-part"),
    "X25519 falls, and the victim's own KEM key": (
        partial(_one_way, lambda member: member == VICTIM),
        "sound-kem-keys",
    ),
    "X25519 falls, and all others' KEM keys": (partial(_one_way, lambda member: member != VICTIM), "sound-kem-keys"),
}


class RecordedTraffic(Attack):
    """Everything that was said, kept until one of the two primitives falls."""

    name = "recorded-traffic"
    adversary = "whoever records all traffic, the server's included, and breaks one primitive years later"
    goal = "Take the masks off a client's recorded vector with the private part of every X25519, or ML-KEM, key."
    paper = "Mosca, IEEE Security & Privacy 2018 (harvest now, decrypt later); NIST FIPS 203"
    promises = ("P19",)
    defences = tuple(dict.fromkeys(defence for _, defence in WAYS.values()))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Open a lockstep step with one primitive broken and the other's part guessed, as the control has it."""
        tries = {what: Try(partial(way, laboratory), (defence,)) for what, (way, defence) in WAYS.items()}
        return counted(tries, what="ways to open recorded traffic", defences=defences)


class RecordedResilientTraffic(Attack):
    """The same of the resilient mode, whose masks rest on X25519."""

    name = "recorded-resilient-traffic"
    adversary = "whoever records all traffic, the server's included, and breaks X25519 years later"
    goal = "Take the masks off a client's recorded vector with the private part of every X25519 key."
    paper = "Mosca, IEEE Security & Privacy 2018 (harvest now, decrypt later)"
    promises = ("L7",)
    defences = ("x25519-alone",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Open a resilient step; the control runs in lockstep, where the same secrets are not enough."""
        broken = Broken()
        if not defences.stands("x25519-alone"):
            federation = lockstep(laboratory, Defences())
            record(federation, broken)
            shown = adversary.advertisements(federation)
            opened = open_lockstep(
                federation,
                lambda one, other: broken.agreed(shown[one], shown[other]),
                lambda sender, receiver: CONSTANT,
            )
        else:
            federation = laboratory.federation(mode="resilient")
            record(federation, broken)
            opened = open_resilient(federation, broken)
        return recovered(lambda: (opened, federation.vectors[0, VICTIM]))


# -- switches ---------------------------------------------


@contextmanager
def _constant_kem() -> Iterator[None]:
    """Members agree by X25519 alone: the KEM's secret is a constant, whatever its ciphertext says."""
    encapsulate = hybrid.encapsulate
    with (
        patch.object(hybrid, "encapsulate", lambda public: (CONSTANT, encapsulate(public)[1])),
        patch.object(KemKey, "decapsulate", lambda self, ciphertext: CONSTANT),
    ):
        yield


def _constant_agreement() -> AbstractContextManager[Any]:
    """Members agree by the KEM alone."""
    return patch.object(keyschedule, "agree", lambda private, peer: CONSTANT)


HALVES = {"ml-kem-part": _constant_kem, "x25519-part": _constant_agreement}

SWITCHES = {
    "256-bit-mask-keys": Switch("Every mask stream has a key of 256 bits, used whole."),
    "ml-kem-part": Switch("A pair's root takes in what each encapsulated to the other's ML-KEM-768 key."),
    "x25519-part": Switch("A pair's root takes in what X25519 makes of both share keys."),
    "sound-kem-keys": Switch("Each of a pair encapsulates to the other, so that one sound KEM key is enough."),
    "x25519-alone": Switch("Resilient masks rest on X25519 alone; the control is lockstep."),
}

ATTACKS: tuple[Attack, ...] = (MaskSeedSearch(), RecordedTraffic(), RecordedResilientTraffic())
