"""Writes the project's own test vectors from fixed inputs: `python tests/protocols/pin_vectors.py`; then read the diff.

A changed vector means that two versions of the protocol no longer understand each other: raise the version in
`keyschedule.PROTOCOL` when that is intended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from codream_protocols import keyschedule, packing, shamir
from codream_protocols.keyschedule import StepKeys
from codream_protocols.masks import SUITES, add_mask, word_type
from codream_protocols.secret import Secret

DIRECTORY = Path(__file__).parent / "vectors"
SEED, PLAN, TRANSCRIPT, BROADCAST = (bytes([value]) * 32 for value in (0x11, 0x22, 0x33, 0x44))
PRIVATE, PEER = bytes(range(32)), bytes(range(32, 64))


def counting(count: int) -> bytes:
    """Fixed bytes in place of random ones: 1, 2, 3, ... modulo 251."""
    return bytes((position + 1) % 251 for position in range(count))


def key_schedule() -> list[dict[str, Any]]:
    """Each derivation once, and the ratchet over three steps."""
    cases: list[dict[str, Any]] = [
        {"name": "labelled", "output": keyschedule.labelled("label", b"", b"ab", b"c").hex()},
        {"name": "digest", "output": keyschedule.digest("label", b"", b"ab", b"c").hex()},
    ]
    seed = Secret(SEED)
    for step in range(3):
        keys = StepKeys(seed, PLAN, step)
        self_mask, private = keys.self_mask.reveal(), keys.mask_private.reveal()
        cases += [
            {"name": f"seed of step {step}", "output": seed.reveal().hex()},
            {"name": f"mask key of step {step}", "output": private.hex()},
            {"name": f"public mask key of step {step}", "output": keyschedule.public_key(private).hex()},
            {"name": f"self mask of step {step}", "output": self_mask.hex()},
            {
                "name": f"self mask commitment of step {step}",
                "output": keyschedule.self_mask_commitment(self_mask, PLAN, step).hex(),
            },
            {
                "name": f"self mask stream of step {step}",
                "output": keyschedule.self_mask_key(self_mask, PLAN, step, BROADCAST).hex(),
            },
        ]
        seed = keyschedule.ratchet(seed, PLAN, step)
    pairwise = keyschedule.pairwise_mask_key(
        PRIVATE,
        keyschedule.public_key(PEER),
        plan=PLAN,
        transcript=TRANSCRIPT,
        step=7,
        broadcast=BROADCAST,
        pair=(5, 2),
    )
    transport = keyschedule.share_transport_key(
        PRIVATE,
        keyschedule.public_key(PEER),
        plan=PLAN,
        sender=5,
        receiver=2,
        advertisements=(TRANSCRIPT, BROADCAST),
    )
    return [
        *cases,
        {"name": "pairwise mask of 5 and 2, step 7", "output": pairwise.hex()},
        {"name": "share transport from 5 to 2", "output": transport.hex()},
    ]


def masks() -> list[dict[str, Any]]:
    """The first 40 bytes of each suite's stream, read as words of 16 and of 32 bits."""
    cases = []
    for suite in SUITES:
        for modulus_bits in (16, 32):
            vector = np.zeros(40 * 8 // modulus_bits, dtype=word_type(modulus_bits))
            add_mask(vector, PRIVATE, suite=suite)
            cases.append({"suite": suite, "modulus_bits": modulus_bits, "words": vector.tolist()})
    return cases


def packed() -> list[dict[str, Any]]:
    """Ten elements at each width."""
    cases = []
    for bits in range(1, 33):
        elements = [(position * 0x9E3779B1 + 12345) % (1 << bits) for position in range(10)]
        data = packing.pack(np.array(elements, dtype=word_type(bits)), bits)
        cases.append({"bits": bits, "elements": elements, "packed": data.hex()})
    return cases


def shares() -> list[dict[str, Any]]:
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


PINNED = {
    "key_schedule": key_schedule,
    "masks": masks,
    "packing": packed,
    "shamir": shares,
}

if __name__ == "__main__":
    for name, make in PINNED.items():
        content = {
            "origin": f"{keyschedule.PROTOCOL}, computed by tests/protocols/pin_vectors.py from the inputs fixed there",
            "cases": make(),
        }
        (DIRECTORY / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
