"""Writes the project's own test vectors from fixed inputs: `python -m tests.protocols.pin_vectors`; then read the diff.

A changed vector means that two versions of the protocol no longer understand each other: raise the version in
`keyschedule.PROTOCOL` when that is intended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from codream_protocols import chain, hybrid, keyschedule, packing, shamir, starts
from codream_protocols.identity import Signer
from codream_protocols.keyschedule import StepKeys
from codream_protocols.masks import SUITES, add_mask, word_type
from codream_protocols.secret import Secret
from codream_protocols.tag import TagKey, tag_bytes
from tests.protocols.recorded_epochs import DIRECTORY, Cases, Epoch, RingEpoch

SEED, PLAN, TRANSCRIPT, CHAIN, HEAD = (bytes([value]) * 32 for value in (0x11, 0x22, 0x33, 0x44, 0x55))
PRIVATE, PEER = bytes(range(32)), bytes(range(32, 64))
LOWER, HIGHER, CIPHERTEXT = bytes([0x66]) * 32, bytes([0x77]) * 32, bytes([0x88]) * hybrid.KEM_CIPHERTEXT_BYTES
MEMBERS = (0, 1, 4)
VALUES = [bytes([0x90 + member]) * 32 for member in MEMBERS]


def counting(count: int) -> bytes:
    """Fixed bytes in place of random ones: 1, 2, 3, ... modulo 251."""
    return bytes((position + 1) % 251 for position in range(count))


def named(pairs: Iterable[tuple[str, bytes]]) -> Cases:
    """One case a value."""
    return [{"name": name, "output": value.hex()} for name, value in pairs]


# -- derivations ---------------------------------------------


def key_schedule() -> Cases:
    """Each derivation once, and the ratchets over three steps; inputs as at the top of this file."""
    return named(_key_schedule())


def _key_schedule() -> Iterator[tuple[str, bytes]]:
    yield "labelled", keyschedule.labelled("label", b"", b"ab", b"c")
    yield "digest", keyschedule.digest("label", b"", b"ab", b"c")
    agreed = keyschedule.agree(PRIVATE, keyschedule.public_key(PEER))
    yield "agreed", agreed
    yield (
        "seal key from 5 to 2",
        hybrid.seal_key(agreed, LOWER, transcript=TRANSCRIPT, sender=5, receiver=2, ciphertext=CIPHERTEXT),
    )
    root = hybrid.pair_root(agreed, LOWER, HIGHER, transcript=TRANSCRIPT, pair=(5, 2))
    for step in range(3):
        key = hybrid.pair_mask_key(root, step, CHAIN)
        yield f"pair root of step {step}", root
        yield f"pair mask key of step {step}", key
        yield f"tag mask of step {step}", tag_bytes(hybrid.tag_mask(key))
        root = hybrid.next_root(root)
    for member, value in zip(MEMBERS, VALUES, strict=True):
        share = hybrid.start_share(value)
        yield f"commitment of {member}", hybrid.commit(PLAN, member, value)
        yield f"start share of {member}", share
        yield f"start commitment of {member}", hybrid.commit_start(PLAN, member, share)
    group_key = hybrid.group_key(TRANSCRIPT, MEMBERS, VALUES)
    yield "group key", group_key
    yield "start seed", hybrid.start_seed(TRANSCRIPT, MEMBERS, b"".join(map(hybrid.start_share, VALUES)))
    yield "tag secret of step 7", hybrid.tag_secret(group_key, 7, CHAIN)
    seed = Secret(SEED)
    for step in range(3):
        keys = StepKeys(seed, PLAN, step)
        self_mask, private = keys.self_mask.reveal(), keys.mask_private.reveal()
        yield f"seed of step {step}", seed.reveal()
        yield f"mask key of step {step}", private
        yield f"public mask key of step {step}", keyschedule.public_key(private)
        yield f"self mask of step {step}", self_mask
        yield f"self mask commitment of step {step}", keyschedule.self_mask_commitment(self_mask, PLAN, step)
        yield f"self mask stream of step {step}", keyschedule.self_mask_key(self_mask, PLAN, step, CHAIN)
        seed = keyschedule.ratchet(seed, PLAN, step)
    pairwise_key = keyschedule.pairwise_mask_key(
        PRIVATE,
        keyschedule.public_key(PEER),
        plan=PLAN,
        transcript=TRANSCRIPT,
        step=7,
        broadcast=CHAIN,
        pair=(5, 2),
    )
    yield "pairwise mask of 5 and 2, step 7", pairwise_key


def states() -> dict[str, np.ndarray[Any, Any]]:
    """A state with each type that there is."""
    types = ("<f4", "<f8", "<i8", "<i4", "|u1", "<u4")
    return {f"a{place}": np.arange(6, dtype=kind).reshape(2, 3) for place, kind in enumerate(types)}


def chains() -> Cases:
    """Transcript, links, head and what a vote signs."""
    signer, state = Signer(PRIVATE), states()
    first = chain.first_link(TRANSCRIPT, SEED, MEMBERS, state)
    last = chain.next_link(first, MEMBERS[1:], b"frame", bytes(range(16)), {})
    vote = chain.vote_statement(HEAD, PLAN, last)
    return named(
        [
            ("transcript of two", chain.transcript(PLAN, [SEED, HEAD])),
            ("first link", first),
            ("next link, empty state", last),
            ("next head", chain.next_head(HEAD, PLAN, last)),
            ("statement of a vote", keyschedule.labelled("vote", *vote)),
            ("vote", signer.sign("vote", *vote)),
        ]
    )


def tagged(length: int, bits: int) -> list[int]:
    """Integers below 2^bits."""
    return [(position * 0x9E3779B1 + 12345) % (1 << bits) for position in range(length)]


def tags() -> Cases:
    """a' X b of `tagged` numbers, pads of members, and the tag of one; 2,050 numbers are two rows."""
    cases = []
    for length, bits in [(1, 8), (9, 10), (2050, 25), (2050, 32)]:
        key, values = TagKey(SEED, length), tagged(length, bits)
        array = np.array(values, dtype=np.int64)
        case = {"length": length, "bits": bits, "product": tag_bytes(key.of(array)).hex()}
        pads = {str(member): tag_bytes(key.pad(member)).hex() for member in (0, 1, 199)}
        cases.append({**case, "pads": pads, "tag of 1": tag_bytes(key.tag(1, array)).hex()})
    signed = np.array([-1, 2, -(1 << 24)], dtype=np.int64)
    cases.append({"length": 3, "values": signed.tolist(), "product": tag_bytes(TagKey(SEED, 3).of(signed)).hex()})
    return cases


def start_images() -> Cases:
    """The first two start images of a seed, as bytes of little-endian float32."""
    rules = {name: starts.start_rule(name) for name in ("noise", "strokes", "shapes")}
    shape = (1, 4, 4)
    return [
        {"rule": name, "shape": shape, "images": rule(SEED, 2, shape).astype("<f4").tobytes().hex()}
        for name, rule in rules.items()
    ]


# -- arithmetic ---------------------------------------------


def masks() -> Cases:
    """The first 40 bytes of the first two pieces of each suite's stream, read as words of 16 and of 32 bits."""
    cases = []
    for suite in SUITES:
        for modulus_bits in (16, 32):
            words, piece = 40 * 8 // modulus_bits, (1 << 18) * 8 // modulus_bits
            vector = np.zeros(piece + words, dtype=word_type(modulus_bits))
            add_mask(vector, PRIVATE, suite=suite)
            first, second = vector[:words].tolist(), vector[piece:].tolist()
            cases.append({"suite": suite, "modulus_bits": modulus_bits, "words": first, "second piece": second})
    return cases


def packed() -> Cases:
    """Ten elements at each width."""
    cases = []
    for bits in range(1, 33):
        elements = tagged(10, bits)
        data = packing.pack(np.array(elements, dtype=word_type(bits)), bits)
        cases.append({"bits": bits, "elements": elements, "packed": data.hex()})
    return cases


def shares() -> Cases:
    """Two secrets of four bytes at several thresholds; coefficients from `counting`."""
    secrets = np.array([[0, 1, 2, 255], [83, 202, 17, 128]], dtype=np.uint8)
    cases = []
    for threshold, points in [(1, [1, 2]), (2, [1, 2, 3]), (3, [1, 2, 5, 255]), (5, [9, 8, 7, 6, 5, 4])]:
        split = shamir.split(secrets, threshold, points, counting)
        cases.append(
            {
                "threshold": threshold,
                "secrets": [row.tobytes().hex() for row in secrets],
                "shares": {str(point): [row.tobytes().hex() for row in rows] for point, rows in split.items()},
            }
        )
    return cases


# -- epochs ---------------------------------------------


def epoch(make: Callable[[], Epoch]) -> Cases:
    """A whole epoch, byte for byte."""
    return json.loads(json.dumps(make().done.cases()))  # type: ignore[no-any-return]


PINNED: dict[str, Callable[[], Cases]] = {
    "chain": chains,
    "epoch_lockstep": partial(epoch, partial(Epoch, "lockstep")),
    "epoch_resilient": partial(epoch, partial(Epoch, "resilient")),
    "epoch_ring": partial(epoch, RingEpoch),
    "key_schedule": key_schedule,
    "masks": masks,
    "packing": packed,
    "shamir": shares,
    "starts": start_images,
    "tag": tags,
}

if __name__ == "__main__":
    for name, make in PINNED.items():
        content = {
            "origin": f"{keyschedule.PROTOCOL}, computed by tests/protocols/pin_vectors.py from the inputs fixed there",
            "cases": make(),
        }
        (DIRECTORY / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
