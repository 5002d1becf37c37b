"""Writes the project's own test vectors from fixed inputs: `python tests/protocols/pin_vectors.py`; then read the diff.

A changed vector means that two versions of the protocol no longer understand each other: raise the version in
`keyschedule.PROTOCOL` when that is intended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from codream_protocols import keyschedule, packing, shamir
from codream_protocols.client import ClientProtocol, Compute, Send
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.keyschedule import PROTOCOL, StepKeys
from codream_protocols.masks import SUITES, add_mask, word_type
from codream_protocols.messages import decode_to_client, decode_to_server, encode_message
from codream_protocols.plan import Block, Plan, Policy, VectorSpec
from codream_protocols.secret import Secret
from codream_protocols.server import Effect, Reveal, SendTo, ServerEpoch

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


class Epoch:
    """Three members, two steps: nobody drops in the first; in the second, member 2's masked input never arrives.

    Everything that is random is fixed here and written down, and each message is decoded from the bytes in the record.
    """

    members = range(3)
    policy = Policy(least_cohort=3, least_survivors=2, colluders=0, tasks={"update": 1.0})
    state = np.array([[0.0, 0.5], [-1.0, 3.25]], dtype=np.float32)

    def __init__(self) -> None:
        self.identities = [self.fixed(f"identity {member}")(32) for member in self.members]
        administrator = Signer(self.fixed("administrator")(32))
        signers = [Signer(private) for private in self.identities]
        self.roster = Roster(
            "vectors",
            7,
            ServerEntry("tcp://127.0.0.1:5555", self.fixed("server transport")(32)),
            tuple(
                Member(f"client-{member}", signers[member].public, self.fixed(f"transport {member}")(32))
                for member in self.members
            ),
        )
        self.roster_file = sign_roster(self.roster, administrator)
        self.administrator = administrator.public
        self.plan = Plan(
            protocol=PROTOCOL,
            session=self.fixed("session")(16),
            epoch=5,
            roster=self.roster.hash,
            recipe=self.fixed("recipe")(32),
            cohort=tuple(self.members),
            specs=(VectorSpec("update", (Block("dreams", 4, 1.0), Block("weight", 1, 0.5))),),
            schedule=(0, 0),
            value_bits=8,
            modulus_bits=10,
            suite="aes-256-ctr",
            threshold=2,
            least_survivors=2,
            colluders=0,
        )
        self.random: list[list[str]] = [[] for _ in self.members]
        self.clients = [
            ClientProtocol(
                member=member,
                signer=signers[member],
                roster=self.roster,
                policy=self.policy,
                random_bytes=self.noted(member),
            )
            for member in self.members
        ]
        self.server = ServerEpoch(self.plan, self.roster)
        self.record: list[dict[str, Any]] = []
        self.sums: list[Reveal] = []

    @staticmethod
    def fixed(label: str) -> Callable[[int], bytes]:
        """A generator of fixed bytes: SHA-256 of the label and a counter, one block after the other."""
        blocks = (hashlib.sha256(f"{label} {count}".encode()).digest() for count in range(1 << 20))
        return lambda size: b"".join(next(blocks) for _ in range(-(-size // 32)))[:size]

    def noted(self, member: int) -> Callable[[int], bytes]:
        """A member's generator, of which each answer is written down."""
        generator = self.fixed(f"random {member}")

        def draw(size: int) -> bytes:
            drawn = generator(size)
            self.random[member].append(drawn.hex())
            return drawn

        return draw

    @staticmethod
    def vector(member: int, step: int) -> np.ndarray[Any, Any]:
        """A member's ring elements of a step, each below 2^8."""
        return np.array([(97 * member + 31 * step + 53 * place) % 256 for place in range(5)], dtype="<u2")

    def run(self) -> None:
        """The whole epoch."""
        self.carry(self.server.start())
        self.carry(self.server.begin_step((1.0, 0.5), [self.state]))
        self.carry(self.server.begin_step((0.25, 0.5), [self.state + 1]), lost=2)
        self.carry(self.server.expire())

    def carry(self, effects: Iterable[Effect], *, lost: int | None = None) -> None:
        """Carry messages to and fro until nobody says anything more; masked inputs of `lost` never arrive."""
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            if isinstance(effect, Reveal):
                self.sums.append(effect)
            elif isinstance(effect, SendTo):
                data = self.note(f"to {effect.member}", effect, lost=False)
                client = self.clients[effect.member]
                answers = client.receive(decode_to_client(data), effect.frames)
                for answer in answers:
                    if isinstance(answer, Compute):
                        answers += client.provide(answer.step, self.vector(effect.member, answer.step))
                        continue
                    gone = effect.member == lost and bool(answer.frames)
                    sent = self.note(f"from {effect.member}", answer, lost=gone)
                    if not gone:
                        waiting += self.server.receive(effect.member, decode_to_server(sent), answer.frames)

    def note(self, way: str, effect: SendTo | Send, *, lost: bool) -> bytes:
        """Write a message down; returns its bytes."""
        data = encode_message(effect.message)
        entry = {"way": way, "kind": type(effect.message).__name__, "data": data.hex()}
        if effect.frames:
            entry["frames"] = [frame.hex() for frame in effect.frames]
        self.record.append({**entry, "lost": True} if lost else entry)
        return data


def epoch() -> list[dict[str, Any]]:
    """A whole epoch, byte for byte: what is fixed, each message in order, the sums."""
    run = Epoch()
    run.run()
    return [
        {"name": "roster", "administrator": run.administrator.hex(), "file": run.roster_file.decode()},
        {"name": "digests", "roster": run.roster.hash.hex(), "plan": run.plan.digest.hex()},
        *(
            {
                "name": f"member {member}",
                "identity": run.identities[member].hex(),
                "random": run.random[member],
                "vectors": [run.vector(member, step).tolist() for step in range(run.plan.steps)],
            }
            for member in run.members
        ),
        {"name": "messages", "record": run.record},
        *(
            {
                "name": f"sum of step {reveal.step}",
                "survivors": list(reveal.survivors),
                "agreed": reveal.agreed,
                "total": reveal.total.tolist(),
            }
            for reveal in run.sums
        ),
    ]


PINNED = {
    "epoch": epoch,
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
