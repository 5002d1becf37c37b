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

from codream_protocols import chain, hybrid, keyschedule, packing, shamir
from codream_protocols.client import Compute
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.hybrid import KemKey
from codream_protocols.identity import Signer, read_roster
from codream_protocols.masks import add_mask, word_type
from codream_protocols.messages import Hello, decode_to_client, encode_message
from codream_protocols.record import certified_epochs
from codream_protocols.record_file import parse_record, record_bytes
from codream_protocols.tag import TagKey, tag_bytes
from tests.protocols import pin_vectors
from tests.protocols.recorded_epochs import DIRECTORY, Epoch, Mode


def cases(name: str) -> list[dict[str, Any]]:
    content = json.loads((DIRECTORY / f"{name}.json").read_text())
    assert content["origin"]
    found: list[dict[str, Any]] = content["cases"]
    return found


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
    if not any(start[4:]):  # the first piece of masks: their nonce is zero and their counter starts at zero
        before = 64 * case["counter"]
        assert stream(key, "chacha20", before + len(output))[before:] == output


@pytest.mark.parametrize("case", cases("aes256_ctr"), ids=lambda case: case["name"])
def test_aes256_ctr(case: dict[str, str]) -> None:
    key, counter, plain, sealed = (
        bytes.fromhex(case[field]) for field in ("key", "counter", "plaintext", "ciphertext")
    )
    assert Cipher(AES(key), CTR(counter)).encryptor().update(plain) == sealed


def test_aes_masks_are_what_gcm_encrypts_with() -> None:
    """The GCM specification's test case 14 (McGrew, Viega): key, nonce and plaintext of zeros; and the second block."""
    found = stream(bytes(32), "aes-256-ctr", 32)
    assert found[:16].hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    assert found[16:] == Cipher(AES(bytes(32)), ECB()).encryptor().update((3).to_bytes(16, "big"))


def test_aes_masks_are_counter_mode_from_the_piece_and_two() -> None:
    """SP 800-38A, section 6.5, written out with the block cipher alone, across the end of a piece."""
    key, size = bytes(range(32)), 1 << 18
    counters = [(0, count) for count in range(2, 2 + size // 16)] + [(1, count) for count in range(2, 10)]
    blocks = b"".join(piece.to_bytes(12, "big") + count.to_bytes(4, "big") for piece, count in counters)
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


@pytest.mark.parametrize("case", cases("mlkem768"), ids=lambda case: case["name"])
def test_mlkem768(case: dict[str, str]) -> None:
    """A key from its seed d || z; what a ciphertext holds; and what a wrong one gives instead of an error."""
    key = KemKey(bytes.fromhex(case["d"] + case["z"]))
    assert key.public.hex() == case["public"]
    assert key.decapsulate(bytes.fromhex(case["ciphertext"])).hex() == case["shared"]
    assert key.decapsulate(bytes.fromhex(case["wrong_ciphertext"])).hex() == case["wrong_shared"]
    secret, ciphertext = hybrid.encapsulate(key.public)
    assert key.decapsulate(ciphertext) == secret


# -- our own ---------------------------------------------


@pytest.mark.parametrize("name", pin_vectors.PINNED)
def test_pinned_vectors_are_unchanged(name: str) -> None:
    assert cases(name) == json.loads(json.dumps(pin_vectors.PINNED[name]()))


def recorded(mode: Mode) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in cases(f"epoch_{mode}")}


@pytest.mark.parametrize(
    ("mode", "member"),
    [*(("lockstep", member) for member in range(3)), *(("resilient", member) for member in range(6))],
)
def test_pinned_epoch_replays(mode: Mode, member: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file alone: what it says that the server sent, to a real client with the randomness that it names."""
    content, run = recorded(mode), Epoch(mode)
    roster_file = content["roster"]["file"].encode()
    assert read_roster(roster_file, bytes.fromhex(content["roster"]["administrator"]), least_serial=7) == run.roster
    own = content[f"member {member}"]
    drawn = iter(bytes.fromhex(text) for text in own["random"])

    def draw(size: int) -> bytes:
        found = next(drawn)
        assert len(found) == size
        return found

    client = run.client(member, draw)
    run.encapsulations.sender = member
    monkeypatch.setattr(hybrid, "encapsulate", run.encapsulations)
    said = []
    for entry in content["messages"]["record"]:
        if member in entry.get("to", ()):
            frames = tuple(map(bytes.fromhex, entry.get("frames", [])))
            effects = client.receive(decode_to_client(bytes.fromhex(entry["data"])), frames)
            for effect in effects:
                if isinstance(effect, Compute):
                    effects = client.provide(effect.plan, effect.step, run.values(member, effect))
            said += [
                (encode_message(effect.message).hex(), [frame.hex() for frame in effect.frames])
                for effect in effects
                if hasattr(effect, "message") and not isinstance(effect.message, Hello)
            ]
    record = [entry for entry in content["messages"]["record"] if entry.get("from") == member]
    assert said == [(entry["data"], entry.get("frames", [])) for entry in record]
    assert not list(drawn)
    assert client.certified == 1 and client.head.hex() == content["digests"]["head"]


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
def test_pinned_record_verifies_and_no_byte_of_it_may_change(mode: Mode) -> None:
    content, run = recorded(mode), Epoch(mode)
    kept = parse_record(bytes.fromhex(content["record"]["file"]))
    assert record_bytes(kept).hex() == content["record"]["file"]
    ((certified, head, trajectory),) = certified_epochs(run.charter, run.roster, run.course, [kept])
    assert certified == 1 and head.hex() == content["digests"]["head"]
    assert [link.hex() for link in trajectory.links] == content["digests"]["links"]
    frames = (*kept[1][:-1], bytes([kept[1][-1][0] ^ 1]) + kept[1][-1][1:])
    with pytest.raises(RemoteProtocolError):
        list(certified_epochs(run.charter, run.roster, run.course, [(kept[0], frames)]))


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


@pytest.mark.parametrize("case", cases("tag"), ids=lambda case: f"{case['length']} numbers")
def test_pinned_tags_check_as_sums(case: dict[str, Any]) -> None:
    """Twice the numbers have twice the product; with the pads of two members, that is a sum that fits."""
    key = TagKey(pin_vectors.SEED, case["length"])
    values = case.get("values") or pin_vectors.tagged(case["length"], case["bits"])
    product = int.from_bytes(bytes.fromhex(case["product"]), "little")
    array = np.array(values, dtype=np.int64)
    assert tag_bytes(key.of(array)).hex() == case["product"]
    total = (2 * product + key.pad(0) + key.pad(1)) % (1 << 128)
    assert key.check(2 * array, total, [0, 1]) and not key.check(2 * array, total, [0, 199])
    assert not key.check(2 * array + 1, total, [0, 1])


def varied(derive: Any, context: dict[str, Any], other: dict[str, Any]) -> list[bytes]:
    """A derivation's result, and with each argument changed alone."""
    assert context.keys() == other.keys()
    return [derive(**context), *(derive(**{**context, name: other[name]}) for name in other)]


def test_every_input_of_a_derivation_changes_its_key() -> None:
    """No two contexts share a key: each argument is varied alone."""
    zero, one = bytes(32), b"x" * 32
    own, peer = bytes(range(32)), keyschedule.public_key(bytes(range(32, 64)))
    keys = varied(
        lambda **context: keyschedule.pairwise_mask_key(own, peer, **context),
        {"plan": zero, "transcript": zero, "step": 1, "broadcast": zero, "pair": (1, 2)},
        {"plan": one, "transcript": one, "step": 2, "broadcast": one, "pair": (1, 3)},
    )
    keys += varied(
        hybrid.seal_key,
        {"agreed": zero, "secret": zero, "transcript": zero, "sender": 1, "receiver": 2, "ciphertext": b"c"},
        {"agreed": one, "secret": one, "transcript": one, "sender": 2, "receiver": 1, "ciphertext": b"d"},
    )
    keys += varied(
        hybrid.pair_root,
        {"agreed": zero, "lower": zero, "higher": zero, "transcript": zero, "pair": (1, 2)},
        {"agreed": one, "lower": one, "higher": one, "transcript": one, "pair": (1, 3)},
    )
    keys += varied(
        hybrid.pair_mask_key,
        {"root": own, "step": 1, "chain": zero},
        {"root": hybrid.next_root(own), "step": 2, "chain": one},
    )
    keys += varied(
        hybrid.tag_secret,
        {"group_key": own, "step": 1, "chain": zero},
        {"group_key": one, "step": 2, "chain": one},
    )
    keys += varied(
        hybrid.group_key,
        {"transcript": zero, "members": (0, 1), "values": [zero, one]},
        {"transcript": one, "members": (0, 2), "values": [one, zero]},
    )
    keys += varied(
        hybrid.start_seed,
        {"transcript": zero, "members": (0, 1), "shares": zero + one},
        {"transcript": one, "members": (0, 2), "shares": one + zero},
    )
    for commit in (hybrid.commit, hybrid.commit_start):
        keys += [commit(zero, 1, own), commit(one, 1, own), commit(zero, 2, own), commit(zero, 1, one)]
    keys += [hybrid.start_share(own), hybrid.next_root(own)]
    for derive in (keyschedule.self_mask_key, keyschedule.self_mask_commitment):
        tail = (b"b" * 32,) if derive is keyschedule.self_mask_key else ()
        keys += [derive(own, zero, 1, *tail), derive(own, one, 1, *tail), derive(own, zero, 2, *tail)]
    assert len(set(keys)) == len(keys)


def test_every_input_of_a_link_changes_the_chain() -> None:
    zero, one = bytes(32), b"x" * 32
    state, other = {"a": np.zeros(2)}, {"a": np.zeros((2, 1))}  # the same bytes in another shape
    links = varied(
        chain.first_link,
        {"transcript_digest": zero, "seed": zero, "members": (0, 1), "state": state},
        {"transcript_digest": one, "seed": one, "members": (0, 2), "state": other},
    )
    links += varied(
        chain.next_link,
        {"chain": zero, "survivors": (0, 1), "frame": b"f", "tag": bytes(16), "state": state},
        {"chain": one, "survivors": (0, 2), "frame": b"g", "tag": b"t" * 16, "state": other},
    )
    links += varied(
        chain.next_head,
        {"head": zero, "plan": zero, "chain": zero},
        {"head": one, "plan": b"y" * 32, "chain": b"z" * 32},
    )
    assert len(set(links)) == len(links)


def test_both_ends_derive_the_same_keys() -> None:
    first, second = bytes(range(32)), bytes(range(32, 64))
    assert keyschedule.public_key(first) == X25519PrivateKey.from_private_bytes(first).public_key().public_bytes_raw()
    context: dict[str, Any] = {"plan": bytes(32), "transcript": bytes(32), "step": 0, "broadcast": bytes(32)}
    one = keyschedule.pairwise_mask_key(first, keyschedule.public_key(second), pair=(4, 9), **context)
    assert one == keyschedule.pairwise_mask_key(second, keyschedule.public_key(first), pair=(9, 4), **context)
