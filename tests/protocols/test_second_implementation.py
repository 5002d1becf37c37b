"""One client written anew from docs/protocol.md alone, with none of this project's modules, gives the very same bytes.

It covers what the document must suffice for: digests, key schedule, advertisement and its signature, shares and their
transport, transcript, masks, packing, the survivors' signature, and what is revealed. Section numbers are the
document's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

VECTORS = Path(__file__).parent / "vectors" / "epoch.json"
CASES = {case["name"]: case for case in json.loads(VECTORS.read_text())["cases"]}
RECORD = CASES["messages"]["record"]
STEPS, THRESHOLD, BITS = 2, 2, 10


def labelled(label: str, *parts: bytes) -> bytes:
    joined = (f"secure-codream/1 {label}".encode(), *parts)
    return b"".join(struct.pack(">I", len(part)) + part for part in joined)


def digest(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(labelled(label, *parts)).digest()


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def expand(secret: bytes, label: str, *parts: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, labelled(label, *parts)).derive(secret)


def agreed(private: bytes, public: bytes, salt: bytes, label: str, *parts: bytes) -> bytes:
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), 32, salt, labelled(label, *parts)).derive(shared)


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def product(left: int, right: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1, bit by bit."""
    result = 0
    while right:
        result ^= left if right & 1 else 0
        left = left << 1 ^ (0x11B if left & 0x80 else 0)
        right >>= 1
    return result


def cut(data: bytes) -> list[bytes]:
    return [data[start : start + 32] for start in range(0, len(data), 32)]


def messages(way: str, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in RECORD if entry["way"] == way and entry["kind"] == kind]


def fields(entry: dict[str, Any]) -> list[Any]:
    return msgpack.unpackb(bytes.fromhex(entry["data"]))


class Member:
    """Member `me` of the recorded epoch."""

    def __init__(self, me: int) -> None:
        self.me, case = me, CASES[f"member {me}"]
        self.identity = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["identity"]))
        self.seed, self.share_private, self.coefficients = map(bytes.fromhex, case["random"])
        self.vectors = case["vectors"]
        _, plan = fields(messages(f"to {me}", "PlanOffer")[0])
        self.plan = digest("plan", msgpack.packb(plan))  # section 5: msgpack's shortest form is the canonical one
        self.mask_keys, self.self_masks, seed = [], [], self.seed
        for step in range(STEPS):  # section 6
            self.mask_keys.append(expand(seed, "mask key", self.plan, number(step)))
            self.self_masks.append(expand(seed, "self mask", self.plan, number(step)))
            seed = expand(seed, "next seed", self.plan, number(step))
        _, _, items = fields(messages(f"to {me}", "Advertisements")[0])
        self.advertised = {item[2]: item for item in items}

    def advertisement(self) -> bytes:
        keys = b"".join(map(public, self.mask_keys))
        commitments = b"".join(
            expand(self_mask, "self mask commitment", self.plan, number(step))
            for step, self_mask in enumerate(self.self_masks)
        )
        parts = (self.plan, bytes([self.me]), public(self.share_private), keys, commitments)
        signature = self.identity.sign(labelled("advertisement", *parts))
        return msgpack.packb(["advertisement", self.plan, self.me, *parts[2:], signature])

    def digest_of(self, member: int) -> bytes:
        _, plan, number_, *rest = self.advertised[member]
        return digest("advertisement", plan, bytes([number_]), *rest)

    def transport_key(self, sender: int, receiver: int) -> bytes:
        other = receiver if sender == self.me else sender
        salt = digest("share salt", self.digest_of(sender), self.digest_of(receiver))
        context = (self.plan, number(sender), number(receiver))
        return agreed(self.share_private, self.advertised[other][3], salt, "share transport", *context)

    def share_for(self, member: int) -> bytes:
        """Degree 1: the secret plus one coefficient times the point; self masks first, then mask keys (section 7)."""
        secrets = b"".join(self.self_masks + self.mask_keys)
        return bytes(
            secret ^ product(slope, member + 1) for secret, slope in zip(secrets, self.coefficients, strict=True)
        )

    def shares(self) -> bytes:
        sealed = [
            [
                member,
                ChaCha20Poly1305(self.transport_key(self.me, member)).encrypt(
                    bytes(12), self.share_for(member), labelled("share", self.plan, bytes([self.me, member]))
                ),
            ]
            for member in self.advertised
            if member != self.me
        ]
        return msgpack.packb(["shares", self.plan, sealed])

    def transcript(self) -> bytes:
        _, _, members, _ = fields(messages(f"to {self.me}", "ShareDelivery")[0])
        return digest("transcript", self.plan, *(self.digest_of(member) for member in members))

    def masked_input(self, step: int) -> tuple[bytes, bytes]:
        entry = messages(f"to {self.me}", "Broadcast")[step]
        broadcast = digest("broadcast", bytes.fromhex(entry["data"]), *map(bytes.fromhex, entry["frames"]))
        own = expand(self.self_masks[step], "self mask stream", self.plan, number(step), broadcast)
        signed = [(1, own)]
        for other in self.advertised:
            if other != self.me:
                low, high = sorted((self.me, other))
                context = (self.plan, number(step), broadcast, number(low), number(high))
                peer = cut(self.advertised[other][4])[step]
                key = agreed(self.mask_keys[step], peer, self.transcript(), "pairwise mask", *context)
                signed.append((1 if self.me < other else -1, key))
        masked = list(self.vectors[step])
        for sign, key in signed:  # section 8: words of 16 bits, since the ring has 10
            stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(2 * len(masked)))
            for place, (word,) in enumerate(struct.iter_unpack("<H", stream)):
                masked[place] = (masked[place] + sign * word) % (1 << BITS)
        joined = sum(word << (BITS * place) for place, word in enumerate(masked))
        frame = joined.to_bytes(-(-BITS * len(masked) // 8), "little")
        return msgpack.packb(["masked-input", self.plan, step, broadcast]), frame

    def signature(self, step: int, survivors: list[int]) -> bytes:
        statement = labelled("survivors", self.transcript(), number(step), bytes(survivors))
        return msgpack.packb(["survivor-signature", self.plan, step, self.identity.sign(statement)])

    def unmask(self, step: int, survivors: list[int]) -> bytes:
        held = {self.me: self.share_for(self.me)}
        _, _, _, items = fields(messages(f"to {self.me}", "ShareDelivery")[0])
        for sender, ciphertext in items:
            additional = labelled("share", self.plan, bytes([sender, self.me]))
            held[sender] = ChaCha20Poly1305(self.transport_key(sender, self.me)).decrypt(
                bytes(12), ciphertext, additional
            )
        rows = [cut(held[owner])[step if owner in survivors else STEPS + step] for owner in sorted(held)]
        return msgpack.packb(["unmask", self.plan, step, b"".join(rows)])


@pytest.fixture(params=[0, 1, 2])
def member(request: pytest.FixtureRequest) -> Member:
    return Member(request.param)


def recorded(member: Member, kind: str) -> list[str]:
    return [entry["data"] for entry in messages(f"from {member.me}", kind)]


def test_digests(member: Member) -> None:
    assert member.plan.hex() == CASES["digests"]["plan"]


def test_set_up(member: Member) -> None:
    assert [member.advertisement().hex()] == recorded(member, "Advertisement")
    assert [member.shares().hex()] == recorded(member, "Shares")


def test_masked_inputs(member: Member) -> None:
    for step, entry in enumerate(messages(f"from {member.me}", "MaskedInput")):
        data, frame = member.masked_input(step)
        assert data.hex() == entry["data"] and [frame.hex()] == entry["frames"]


def test_what_is_revealed(member: Member) -> None:
    answers = [member.unmask(0, [0, 1, 2]).hex()]
    if member.me != 2:  # which was lost in the second step
        assert [member.signature(1, [0, 1]).hex()] == recorded(member, "SurvivorSignature")
        answers.append(member.unmask(1, [0, 1]).hex())
    assert answers == recorded(member, "UnmaskShares")


def test_sums() -> None:
    """Section 9: what the record says was revealed is the sum of the survivors' vectors."""
    for step in range(STEPS):
        case = CASES[f"sum of step {step}"]
        vectors = [CASES[f"member {survivor}"]["vectors"][step] for survivor in case["survivors"]]
        assert case["total"] == [sum(column) for column in zip(*vectors, strict=True)]


def test_roster() -> None:
    """Section 4: the roster's hash and signature, from the file."""
    signed = json.loads(CASES["roster"]["file"])

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return base64.b64decode(value) if key.endswith("_key") else value

    found = digest("roster", msgpack.packb(plain(signed["roster"])))
    assert found.hex() == CASES["digests"]["roster"]
    administrator = Ed25519PublicKey.from_public_bytes(bytes.fromhex(CASES["roster"]["administrator"]))
    administrator.verify(base64.b64decode(signed["signature"]), labelled("roster signature", found))
