"""Key schedule: which key comes from which, and under which label.

Every derivation is HKDF-SHA256 (RFC 5869) with an `info` that starts with the protocol's name and version, so two
versions can never share a key. A client's epoch seed is a ratchet: step t's X25519 mask key and self-mask seed come
from seed t, and seed t+1 replaces seed t, so that whoever takes a client over later cannot rebuild an earlier mask.
A pairwise key binds the transcript (whom the client was shown) and the digest of the broadcast (what it was shown):
clients who were shown different things get masks that do not cancel (Pasquini et al., CCS 2022).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from functools import cache

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from codream_protocols.errors import CohortRefused
from codream_protocols.secret import Secret

PROTOCOL = "secure-codream/2"
KEY_BYTES = 32


def labelled(label: str, *parts: bytes) -> bytes:
    """Join a domain label and length-prefixed parts: an encoding without ambiguity, for hashes, keys and signatures."""
    joined = [_name(label)]
    for part in parts:
        joined += struct.pack(">I", len(part)), part
    return b"".join(joined)


@cache
def _name(label: str) -> bytes:
    name = f"{PROTOCOL} {label}".encode()
    return struct.pack(">I", len(name)) + name


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 of `labelled(label, *parts)`, 32 bytes; a part may be a vector, so nothing is joined."""
    hashed = hashlib.sha256(_name(label))
    for part in parts:
        hashed.update(struct.pack(">I", len(part)))
        hashed.update(part)
    return hashed.digest()


def number(value: int) -> bytes:
    """A non-negative integer below 2^32 as 4 bytes, big-endian."""
    return struct.pack(">I", value)


def numbers(*members: int) -> bytes:
    """Members' numbers: one byte each where all are below 256, else four each, big-endian.

    No two sets that ascend have the same bytes: a set in wide form begins with two zero bytes, one in narrow form never
    does; a single number or a pair is told by its length.
    """
    return bytes(members) if max(members, default=0) < 256 else struct.pack(f">{len(members)}I", *members)


def expand(secret: bytes, info: bytes) -> bytes:
    """HKDF-Expand to 32 bytes from a secret that is uniform already."""
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(secret)


def extract_and_expand(shared: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF (extract, then expand) to 32 bytes from a Diffie-Hellman result, which is not uniform."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(shared)


def public_key(private: bytes) -> bytes:
    """The X25519 public key (RFC 7748), 32 bytes, of a private key of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def coordinate(public: bytes) -> int:
    """The number that X25519 reads in a public key: the top bit is ignored, and values from 2^255 - 19 on wrap."""
    return (int.from_bytes(public, "little") & ((1 << 255) - 1)) % ((1 << 255) - 19)


Private = bytes | X25519PrivateKey
"""A private key, 32 bytes, or what `prepared` made of it."""


def prepared(private: bytes) -> X25519PrivateKey:
    """A private key for many agreements; making it takes almost as long as an agreement."""
    return X25519PrivateKey.from_private_bytes(private)


def agree(private: Private, peer_public: bytes) -> bytes:
    """X25519 (RFC 7748).

    Raises:
        CohortRefused: the peer's key has low order, so the result would be known to everyone.
    """
    key = prepared(private) if isinstance(private, bytes) else private
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError:
        raise CohortRefused(
            "a public key of low order", "X25519 public keys of full order", "the peer must be removed"
        ) from None


Agree = Callable[[Private, bytes], bytes]
"""As `agree`; a simulation that runs both members of a pair in one process may remember what they have agreed."""


class StepKeys:
    """One client's own secrets of one step: X25519 mask key and self-mask seed."""

    __slots__ = ("mask_private", "self_mask")

    def __init__(self, seed: Secret, plan: bytes, step: int) -> None:
        self.mask_private = Secret(expand(seed.reveal(), labelled("mask key", plan, number(step))))
        self.self_mask = Secret(expand(seed.reveal(), labelled("self mask", plan, number(step))))

    def erase(self) -> None:
        """Erase both."""
        self.mask_private.erase()
        self.self_mask.erase()

    def __repr__(self) -> str:
        return "<StepKeys, hidden>"


def ratchet(seed: Secret, plan: bytes, step: int) -> Secret:
    """Replace the seed of `step` by the seed of the next one; the old one is erased."""
    following = Secret(expand(seed.reveal(), labelled("next seed", plan, number(step))))
    seed.erase()
    return following


def self_mask_commitment(self_mask: bytes, plan: bytes, step: int) -> bytes:
    """A public value that tells a rightly rebuilt self-mask seed (32 bytes; it hides a uniform seed)."""
    return expand(self_mask, labelled("self mask commitment", plan, number(step)))


def self_mask_key(self_mask: bytes, plan: bytes, step: int, broadcast: bytes) -> bytes:
    """The mask generator's key for a self mask."""
    return expand(self_mask, labelled("self mask stream", plan, number(step), broadcast))


def pairwise_mask_key(
    private: Private,
    peer_public: bytes,
    *,
    plan: bytes,
    transcript: bytes,
    step: int,
    broadcast: bytes,
    pair: tuple[int, int],
    by: Agree | None = None,
) -> bytes:
    """The mask generator's key that two members share for one step.

    Args:
        private: this member's X25519 mask key of the step.
        peer_public: the other's public mask key of the step, 32 bytes.
        plan: the plan's digest.
        transcript: digest of all advertisements of the epoch's members.
        step: the step, from 0.
        broadcast: digest of the step's broadcast.
        pair: both members' numbers, in any order.
        by: X25519, if not `agree`.

    Raises:
        CohortRefused: the peer's key has low order.
    """
    low, high = sorted(pair)
    info = labelled("pairwise mask", plan, number(step), broadcast, number(low), number(high))
    return extract_and_expand((by or agree)(private, peer_public), transcript, info)
