"""What others' masks would give away: a mask seed of 32 bits, as Flower's secaggplus had it, and ours.

Flower's `pseudo_rand_gen` (src/py/flwr/common/secure_aggregation/secaggplus_utils.py, read at commit 0c8e174c) folds a
shared secret of 256 bits to 32 by XOR and seeds NumPy's Mersenne Twister with it. Later sources of that file stretch
the secret with HMAC-SHA256 instead; the attack is on the construction, wherever it is still in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np

from codream_protocols import keyschedule
from codream_protocols.keyschedule import KEY_BYTES, StepKeys
from codream_protocols.masks import add_mask
from codream_protocols.messages import Survivors
from secure_codream.threats import adversary
from secure_codream.threats.adversary import announce, rebuild
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.dropouts import all_but
from secure_codream.threats.evidence import LEAST_RECOVERED, Vector
from secure_codream.threats.federation import Stuck
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.switches import Switch

VICTIM, PARTNER, COLLUDER = range(3)
SECONDS_OF_A_YEAR = 365.25 * 86_400
FLOWER_RING, FLOWER_RANGE = 1 << 32, 1 << 22  # secaggplus's defaults: modulus, and range of a quantised value


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
    """A real client's masked input, all masks taken off but that shared with one honest partner."""
    federation = laboratory.federation(members=3, threshold=3, colluders=1, least_survivors=3, policy=None)
    federation.set_up()
    colluder = federation.clients[COLLUDER]._epoch
    if colluder is None:
        raise Stuck("the set-up failed")
    own = StepKeys(colluder.seed, federation.plan.digest, 0).mask_private.reveal()
    federation.begin_step()
    federation.drain(lost={(member, Survivors) for member in all_but(federation)})
    secrets = rebuild(federation, {one: announce(federation, one, all_but(federation)) for one in all_but(federation)})
    hidden = adversary.masked_input(federation, 0, VICTIM)
    adversary.take_off_self_mask(federation, hidden, secrets[VICTIM], 0)
    key = keyschedule.pairwise_mask_key(
        own,
        adversary.advertisements(federation)[VICTIM].mask_key(0),
        plan=federation.plan.digest,
        transcript=colluder.transcript,
        step=0,
        broadcast=adversary.broadcast_digest(federation, 0),
        pair=(VICTIM, COLLUDER),
    )
    add_mask(hidden, key, suite=federation.plan.suite, negative=True)  # the victim, with the smaller number, added it
    hidden = adversary.reduce(federation, hidden)

    def streams() -> Iterable[Vector]:
        for seed in range(1 << bits):
            candidate = hidden.copy()
            add_mask(candidate, seed.to_bytes(KEY_BYTES, "little"), suite=federation.plan.suite, negative=True)
            yield adversary.reduce(federation, candidate)

    return hidden, federation.vectors[0, VICTIM], 1 << federation.plan.value_bits, streams


SWITCHES = {"256-bit-mask-keys": Switch("Every mask stream has a key of 256 bits, used whole.")}

ATTACKS: tuple[Attack, ...] = (MaskSeedSearch(),)
