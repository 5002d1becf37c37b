"""Test vectors: of the standards, through this package's own functions where they expose the primitive; and our own.

An empty difference against `vectors/*.json` says that this version still speaks with every other one of its number.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB

from codream_protocols import keyschedule, packing, shamir
from codream_protocols.client import ClientProtocol, Compute
from codream_protocols.identity import Signer, read_roster
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import decode_to_client, encode_message
from tests.protocols import pin_vectors


def cases(name: str) -> list[dict[str, Any]]:
    content = json.loads((pin_vectors.DIRECTORY / f"{name}.json").read_text())
    assert content["origin"]
    return content["cases"]


def stream(key: bytes, suite: str, count: int) -> bytes:
    """The bytes that `add_mask` adds."""
    vector = np.zeros(-(-count // 4), dtype="<u4")
    add_mask(vector, key, suite=suite)
    return vector.tobytes()[:count]


# -- the standards ---------------------------------------------


@pytest.mark.parametrize("case", cases("x25519"), ids=lambda case: case["name"])
def test_x25519(case: dict[str, str]) -> None:
    private, public, shared = (bytes.fromhex(case[field]) for field in ("private", "public", "shared"))
    assert keyschedule.agree(private, public) == shared
    if "own_public" in case:
        assert keyschedule.public_key(private).hex() == case["own_public"]


def test_x25519_a_thousand_times() -> None:
    """RFC 7748, section 5.2: the iterated test, k and u from 9."""
    scalar = point = (9).to_bytes(32, "little")
    for count in range(1, 1001):
        scalar, point = keyschedule.agree(scalar, point), scalar
        if count == 1:
            assert scalar.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@pytest.mark.parametrize("case", cases("hkdf_sha256"), ids=lambda case: case["name"])
def test_hkdf_sha256(case: dict[str, str]) -> None:
    """Our outputs have 32 bytes: the beginning of the standard's longer ones."""
    secret, salt, info, extracted, output = (
        bytes.fromhex(case[name]) for name in ("ikm", "salt", "info", "prk", "okm")
    )
    assert keyschedule.extract_and_expand(secret, salt, info) == output[:32]
    assert keyschedule.expand(extracted, info) == output[:32]


@pytest.mark.parametrize("case", cases("chacha20"), ids=lambda case: case["name"])
def test_chacha20(case: dict[str, Any]) -> None:
    key, nonce, output = (bytes.fromhex(case[field]) for field in ("key", "nonce", "keystream"))
    start = case["counter"].to_bytes(4, "little") + nonce
    assert Cipher(ChaCha20(key, start), mode=None).encryptor().update(bytes(len(output))) == output
    if not any(start[4:]):  # the masks' nonce is zero and their counter starts at zero
        before = 64 * case["counter"]
        assert stream(key, "chacha20", before + len(output))[before:] == output


@pytest.mark.parametrize("case", cases("aes256_ctr"), ids=lambda case: case["name"])
def test_aes256_ctr(case: dict[str, str]) -> None:
    key, counter, plain, sealed = (
        bytes.fromhex(case[field]) for field in ("key", "counter", "plaintext", "ciphertext")
    )
    assert Cipher(AES(key), CTR(counter)).encryptor().update(plain) == sealed
    if not any(counter):
        assert stream(key, "aes-256-ctr", len(sealed)) == sealed  # of a plaintext of zeros


def test_aes_masks_are_counter_mode_from_zero() -> None:
    """SP 800-38A, section 6.5, written out with the block cipher alone."""
    key = bytes(range(32))
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(300))
    assert stream(key, "aes-256-ctr", len(blocks)) == Cipher(AES(key), ECB()).encryptor().update(blocks)


@pytest.mark.parametrize("case", cases("chacha20_poly1305"), ids=lambda case: case["name"])
def test_chacha20_poly1305(case: dict[str, str]) -> None:
    key, nonce, additional, plain, sealed, tag = (
        bytes.fromhex(case[field]) for field in ("key", "nonce", "aad", "plaintext", "ciphertext", "tag")
    )
    cipher = ChaCha20Poly1305(key)
    assert cipher.encrypt(nonce, plain, additional) == sealed + tag
    assert cipher.decrypt(nonce, sealed + tag, additional) == plain
    with pytest.raises(InvalidTag):
        cipher.decrypt(nonce, sealed + tag, additional + b"\0")


@pytest.mark.parametrize("case", cases("ed25519"), ids=lambda case: case["name"])
def test_ed25519(case: dict[str, str]) -> None:
    """Our signer signs labelled statements only, so the message goes through its key."""
    private, public, message, signature = (
        bytes.fromhex(case[field]) for field in ("private", "public", "message", "signature")
    )
    signer = Signer(private)
    assert signer.public == public and signer._key.sign(message) == signature
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)


# -- our own ---------------------------------------------


@pytest.mark.parametrize("name", pin_vectors.PINNED)
def test_pinned_vectors_are_unchanged(name: str) -> None:
    assert cases(name) == json.loads(json.dumps(pin_vectors.PINNED[name]()))


@pytest.mark.parametrize("member", pin_vectors.Epoch.members)
def test_pinned_epoch_replays(member: int) -> None:
    """From the file alone: what it says that the server sent, to a real client with the randomness that it names."""
    content = {case["name"]: case for case in cases("epoch")}
    roster_file = content["roster"]["file"].encode()
    roster = read_roster(roster_file, bytes.fromhex(content["roster"]["administrator"]), least_serial=7)
    own = content[f"member {member}"]
    drawn = iter(bytes.fromhex(text) for text in own["random"])

    def draw(size: int) -> bytes:
        found = next(drawn)
        assert len(found) == size
        return found

    client = ClientProtocol(
        member=member,
        signer=Signer(bytes.fromhex(own["identity"])),
        roster=roster,
        policy=pin_vectors.Epoch.policy,
        random_bytes=draw,
    )
    said = []
    for entry in content["messages"]["record"]:
        if entry["way"] == f"to {member}":
            frames = tuple(map(bytes.fromhex, entry.get("frames", [])))
            effects = client.receive(decode_to_client(bytes.fromhex(entry["data"])), frames)
            if effects and isinstance(effects[0], Compute):
                vector = np.array(own["vectors"][effects[0].step], dtype="<u2")
                effects = client.provide(effects[0].step, vector)
            said += [(encode_message(effect.message).hex(), [f.hex() for f in effect.frames]) for effect in effects]
    record = [entry for entry in content["messages"]["record"] if entry["way"] == f"from {member}"]
    assert said == [(entry["data"], entry.get("frames", [])) for entry in record]
    assert not list(drawn)


@pytest.mark.parametrize("case", cases("shamir"), ids=lambda case: f"threshold {case['threshold']}")
def test_pinned_shares_rebuild_their_secrets(case: dict[str, Any]) -> None:
    shares = {
        int(point): np.array([list(bytes.fromhex(row)) for row in rows], dtype=np.uint8)
        for point, rows in case["shares"].items()
    }
    for chosen in combinations(shares, case["threshold"]):
        rebuilt = shamir.combine({point: shares[point] for point in chosen})
        assert [row.tobytes().hex() for row in rebuilt] == case["secrets"]


@pytest.mark.parametrize("case", cases("packing"), ids=lambda case: f"{case['bits']} bits")
def test_pinned_packing_unpacks(case: dict[str, Any]) -> None:
    unpacked = packing.unpack(bytes.fromhex(case["packed"]), len(case["elements"]), case["bits"])
    assert unpacked.tolist() == case["elements"] and unpacked.dtype == word_type(case["bits"])


def test_every_input_of_a_derivation_changes_its_key() -> None:
    """No two contexts share a key: each argument is varied alone."""
    own, peer = bytes(range(32)), keyschedule.public_key(bytes(range(32, 64)))
    context: dict[str, Any] = {
        "plan": bytes(32),
        "transcript": bytes(32),
        "step": 1,
        "broadcast": bytes(32),
        "pair": (1, 2),
    }
    other = {"plan": b"x" * 32, "transcript": b"x" * 32, "step": 2, "broadcast": b"x" * 32, "pair": (1, 3)}
    keys = [keyschedule.pairwise_mask_key(own, peer, **context)]
    keys += [keyschedule.pairwise_mask_key(own, peer, **{**context, name: other[name]}) for name in other]
    transport: dict[str, Any] = {"plan": bytes(32), "sender": 1, "receiver": 2, "advertisements": (b"a", b"b")}
    changed = {"plan": b"x" * 32, "sender": 2, "receiver": 1, "advertisements": (b"b", b"a")}
    keys.append(keyschedule.share_transport_key(own, peer, **transport))
    keys += [keyschedule.share_transport_key(own, peer, **{**transport, name: changed[name]}) for name in changed]
    for derive in (keyschedule.self_mask_key, keyschedule.self_mask_commitment):
        tail = (b"b" * 32,) if derive is keyschedule.self_mask_key else ()
        keys += [derive(own, bytes(32), 1, *tail), derive(own, b"x" * 32, 1, *tail), derive(own, bytes(32), 2, *tail)]
    assert len(set(keys)) == len(keys)


def test_both_ends_derive_the_same_keys() -> None:
    first, second = bytes(range(32)), bytes(range(32, 64))
    assert keyschedule.public_key(first) == X25519PrivateKey.from_private_bytes(first).public_key().public_bytes_raw()
    context: dict[str, Any] = {"plan": bytes(32), "transcript": bytes(32), "step": 0, "broadcast": bytes(32)}
    one = keyschedule.pairwise_mask_key(first, keyschedule.public_key(second), pair=(4, 9), **context)
    assert one == keyschedule.pairwise_mask_key(second, keyschedule.public_key(first), pair=(9, 4), **context)
