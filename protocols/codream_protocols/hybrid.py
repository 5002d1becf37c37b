"""Pairs of members: hybrid key agreement, X25519 and ML-KEM-768 (FIPS 203), and what comes from everybody's values.

Each of a pair encapsulates to the other's fresh ML-KEM key and signs the ciphertext with the rest of what it seals.

    seal key, i to j = HKDF(x25519 || secret that i encapsulated; salt = transcript; info = i, j, KEM ciphertext)
    pair root        = HKDF(x25519 || secret of the lower || secret of the higher; salt = transcript; info = the pair)

Recorded traffic stays masked for who breaks one of the two later. Both ways and signed, since an unsigned ciphertext
would let whoever sits on the line put its own in, and hybrid would be a word. A pair root is a ratchet: the root of
step t + 1 replaces that of step t, so whoever takes a member over later cannot make an earlier mask.

Each member's advertisement commits to a random value and to a start share that follows from it. The seals carry the
value, so that all members know all of them: from the values comes the group key, which is never sent, from the start
shares the start seed. The start shares go out in clear with the first vector, and whoever has the advertisements can
compare them with the commitments; so nobody chooses where a trajectory starts, and anybody can see that nobody did.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from codream_protocols.errors import CohortRefused, ShareRefused
from codream_protocols.keyschedule import digest, expand, extract_and_expand, labelled, number, numbers

KEM_KEY_BYTES = 1184
KEM_CIPHERTEXT_BYTES = 1088
KEM_SEED_BYTES = 64

_TAG_MASK = labelled("tag mask")


class KemKey:
    """A fresh ML-KEM-768 key pair; hides itself, and is dropped by its owner when the set-up is done."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        self._key = MLKEM768PrivateKey.from_seed_bytes(seed)

    @property
    def public(self) -> bytes:
        """The encapsulation key, 1,184 bytes."""
        return self._key.public_key().public_bytes_raw()

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 bytes; of a garbled ciphertext another one, which opens nothing.

        Raises:
            ShareRefused: a ciphertext of the wrong size.
        """
        try:
            return self._key.decapsulate(ciphertext)
        except ValueError:
            raise ShareRefused("a KEM ciphertext of the wrong form", f"{KEM_CIPHERTEXT_BYTES} bytes") from None

    def __repr__(self) -> str:
        return "<KemKey, hidden>"

    def __deepcopy__(self, memo: object) -> KemKey:
        return self  # immutable

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("a KemKey is never pickled")


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh secret and its ciphertext, 32 and 1,088 bytes, for an encapsulation key.

    Raises:
        CohortRefused: no ML-KEM-768 key.
    """
    try:
        return MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    except ValueError:
        raise CohortRefused("a malformed ML-KEM key", f"{KEM_KEY_BYTES} bytes of a valid key") from None


def check_kem_key(public: bytes) -> None:
    """Refuse what is no ML-KEM-768 key; raises `CohortRefused`."""
    try:
        MLKEM768PublicKey.from_public_bytes(public)
    except ValueError:
        raise CohortRefused("a malformed ML-KEM key", f"{KEM_KEY_BYTES} bytes of a valid key") from None


def seal_key(
    agreed: bytes, secret: bytes, *, transcript: bytes, sender: int, receiver: int, ciphertext: bytes
) -> bytes:
    """The AEAD key of what `sender` seals for `receiver`; used for one message only."""
    info = labelled("seal", number(sender), number(receiver), ciphertext)
    return extract_and_expand(agreed + secret, transcript, info)


def pair_root(agreed: bytes, lower: bytes, higher: bytes, *, transcript: bytes, pair: tuple[int, int]) -> bytes:
    """The root of all masks of a pair, 32 bytes; `lower` is the secret that the member of the lower number made."""
    low, high = sorted(pair)
    return extract_and_expand(agreed + lower + higher, transcript, labelled("pair root", number(low), number(high)))


def next_root(root: bytes) -> bytes:
    """The pair's root of the next step."""
    return expand(root, labelled("next pair root"))


def pair_mask_key(root: bytes, step: int, chain: bytes) -> bytes:
    """The mask generator's key that a pair shares for one step at one state and history."""
    return expand(root, labelled("pair mask", number(step), chain))


def tag_mask(mask_key: bytes) -> int:
    """What a mask key adds to a tag, modulo 2^128."""
    return int.from_bytes(expand(mask_key, _TAG_MASK)[:16], "little")


def tag_masks(keys: Iterable[tuple[bytes, bool]]) -> int:
    """What mask keys add to a tag, those whose stream is taken away negative; to be reduced modulo 2^128."""
    return sum(-tag_mask(key) if negative else tag_mask(key) for key, negative in keys)


def commit(plan: bytes, member: int, value: bytes) -> bytes:
    """The commitment to a member's value."""
    return digest("value", plan, number(member), value)


def start_share(value: bytes) -> bytes:
    """A member's share of the start seed; it says nothing of the value."""
    return expand(value, labelled("start share"))


def commit_start(plan: bytes, member: int, share: bytes) -> bytes:
    """The commitment to a member's start share."""
    return digest("start share", plan, number(member), share)


def group_key(transcript: bytes, members: tuple[int, ...], values: list[bytes]) -> bytes:
    """The group key, 32 bytes, from all members' values in the roster's order."""
    return extract_and_expand(b"".join(values), transcript, labelled("group key", numbers(*members)))


def start_seed(transcript: bytes, members: tuple[int, ...], shares: bytes) -> bytes:
    """The start seed, 32 bytes, from all members' start shares in the roster's order."""
    return digest("start seed", transcript, numbers(*members), shares)


def tag_secret(group_key: bytes, step: int, chain: bytes) -> bytes:
    """The secret of a step's tag key."""
    return expand(group_key, labelled("tag key", number(step), chain))
