"""A client and a verifier written anew from docs/protocol.md alone, without this project's modules, in plain integers.

`Member` is one client in either mode: plan, advertisement, seals, transcript, group key, start, masks, tag, survivors'
signature, what is revealed, the check of a sum, chain, vote. `verified` recomputes a record. Section numbers are the
document's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

Array = tuple[str, list[float]]  # type and numbers of one axis

# -- section 2 ---------------------------------------------


def labelled(label: str, *parts: bytes) -> bytes:
    joined = (f"secure-codream/2 {label}".encode(), *parts)
    return b"".join(struct.pack(">I", len(part)) + part for part in joined)


def digest(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(labelled(label, *parts)).digest()


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def expand(secret: bytes, label: str, *parts: bytes) -> bytes:
    return hmac.digest(secret, labelled(label, *parts) + b"\1", "sha256")  # RFC 5869: the first block is all of it


def extract(secret: bytes, salt: bytes, label: str, *parts: bytes) -> bytes:
    return expand(hmac.digest(salt, secret, "sha256"), label, *parts)


def agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def stream(key: bytes, count: int, counter: int = 0) -> bytes:
    return Cipher(AES(key), CTR(counter.to_bytes(16, "big"))).encryptor().update(bytes(count))


def product(left: int, right: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1, bit by bit."""
    result = 0
    while right:
        result ^= left if right & 1 else 0
        left = left << 1 ^ (0x11B if left & 0x80 else 0)
        right >>= 1
    return result


def signed(key: bytes, signature: bytes, label: str, *parts: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, labelled(label, *parts))
    except InvalidSignature:
        return False
    return True


def advertisements_in(items: list[list[Any]]) -> list[list[Any]]:
    """An advertisement keeps its tag within another message."""
    assert all(item[0] == "advertisement" for item in items)
    return [item[1:] for item in items]


def cut(data: bytes) -> list[bytes]:
    return [data[start : start + 32] for start in range(0, len(data), 32)]


# -- sections 3 to 6 ---------------------------------------------


def planes(count: int, bits: int) -> Iterator[tuple[int, int, int, int]]:
    """First bit, width, elements a word and words of each plane."""
    shift = 0
    while left := bits - shift:
        width = 16 if left >= 16 else 8 if left > 8 else left
        yield shift, width, 16 // width, -(-count // (16 // width))
        shift += width


def pack(elements: Sequence[int], bits: int) -> bytes:
    words = []
    for shift, width, parts, length in planes(len(elements), bits):
        column = [0] * length
        for place, element in enumerate(elements):
            part, word = divmod(place, length)
            assert part < parts
            column[word] |= (element >> shift & (1 << width) - 1) << part * width
        words += column
    return struct.pack(f"<{len(words)}H", *words)


def unpack(frame: bytes, count: int, bits: int) -> list[int]:
    words, elements = list(struct.unpack(f"<{len(frame) // 2}H", frame)), [0] * count
    for shift, width, _, length in planes(count, bits):
        column, words = words[:length], words[length:]
        for place in range(count):
            part, word = divmod(place, length)
            elements[place] |= (column[word] >> part * width & (1 << width) - 1) << shift
    assert not words and pack(elements, bits) == frame
    return elements


@dataclass
class Federation:
    """What all know offline: roster, charter, and the course of sums (section 7)."""

    roster_hash: bytes
    identities: list[bytes]
    charter: list[Any]
    vectors: list[tuple[str, list[list[Any]]]]  # task and blocks [name, length, clip, kind]

    @property
    def mode(self) -> str:
        mode: str = self.charter[3][0]
        return mode

    @property
    def colluders(self) -> int:
        colluders: int = self.charter[3][1]
        return colluders

    @property
    def digest(self) -> bytes:
        return digest("charter", msgpack.packb(self.charter))

    @property
    def first_head(self) -> bytes:
        return digest("first head", self.digest, self.charter[5][1] if self.charter[5] else b"")

    @property
    def quorum(self) -> int:
        members: int = self.charter[1]
        return members if self.mode == "lockstep" else (members + self.colluders) // 2 + 1

    def may_be_summed(self, members: Sequence[int]) -> bool:
        chosen = set(members)
        whole = all(set(block) <= chosen or not set(block) & chosen for block in self.charter[4])
        enough = len(members) >= self.charter[3][2] and list(members) == sorted(chosen)
        return whole and enough and (self.mode != "lockstep" or len(members) == self.charter[1])


def make_federation(roster_file: str, administrator: bytes, settings: bytes, mode: str) -> Federation:
    """Sections 4 and 5; value bits 8, all else as charters have it by default."""
    file = json.loads(roster_file)

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item, key) for item in value]
        return base64.b64decode(value) if key.endswith("_key") or key == "administrators" else value

    roster = plain(file["roster"])
    found = digest("roster", msgpack.packb(roster))
    assert base64.b64decode(file["administrator"]) == administrator
    assert signed(administrator, base64.b64decode(file["signature"]), "roster signature", found)
    members = len(roster["members"])
    count = max(1, members // 3)
    bounds = [members * block // count for block in range(count + 1)]
    blocks = [list(range(bounds[block], bounds[block + 1])) for block in range(count)]
    aggregation = [mode, 1, 3, 8, "aes-256-ctr", "blocks", 20]
    return Federation(
        found,
        [member["identity_key"] for member in roster["members"]],
        [found, members, settings, aggregation, blocks, None],
        [
            ("visits", [["hours", 5, 1.0, "real"], ["patients", 2, 300, "count"]]),
            ("scores", [["score", 3, 0.5, "real"]]),
        ],
    )


class Plan:
    """Section 5."""

    def __init__(self, federation: Federation, offer: list[Any], certified: int) -> None:
        self.federation, self.offer = federation, offer
        colluders, size = federation.colluders, len(offer[1])
        assert certified == 0 and federation.may_be_summed(offer[1])
        self.steps = len(federation.vectors)
        # The last kind has a resolution of its own: a ring of 16 bits, and as many values as fit.
        members = federation.charter[1]
        self.bits = [8 + (members - 1).bit_length()] * (self.steps - 1) + [16]
        self.tops = [255] * (self.steps - 1) + [(2**16 - 1) // members]
        lockstep = federation.mode == "lockstep"
        self.threshold = size if lockstep else max(min(size, 2 * size // 3 + 1), (size + colluders) // 2 + 1)
        own = [None] * (self.steps - 1) + [10]
        specs = [[task, blocks, None, bits] for (task, blocks), bits in zip(federation.vectors, own, strict=True)]
        schedule = list(range(self.steps))
        plan = ["secure-codream/2", federation.charter, offer, certified, specs, schedule, self.bits, self.threshold]
        self.digest = digest("plan", msgpack.packb(plan))

    def words(self, step: int) -> int:
        return sum(length * digits(clip, kind) for _, length, clip, kind in self.federation.vectors[step][1])


def digits(clip: float, kind: str) -> int:
    return 1 if kind == "real" else -(-int(clip).bit_length() // 8)


# -- sections 7, 11, 12 ---------------------------------------------


def decoded(plan: Plan, step: int, total: list[int], survivors: int) -> dict[str, Array]:
    """The sums of a step's blocks; refuses what no inputs add up to."""
    sums, start = {}, 0
    for name, length, clip, kind in plan.federation.vectors[step][1]:
        count = digits(clip, kind)
        part = total[start : start + length * count]
        start += length * count
        top = plan.tops[step] if kind == "real" else 255
        assert max(part) <= survivors * top
        if kind == "real":
            sums[name] = ("<f8", [float(element) * ((2 * clip) / top) - survivors * clip for element in part])
        else:
            sums[name] = ("<i8", [sum(part[k * length + i] << (8 * k) for k in range(count)) for i in range(length)])
    return sums


def state_digest(state: dict[str, Array]) -> bytes:
    parts: list[bytes] = []
    for name in sorted(state):
        kind, numbers = state[name]
        shape = number(1) + number(len(numbers))
        parts += [
            name.encode(),
            kind.encode(),
            shape,
            struct.pack(f"<{len(numbers)}{'d' if kind == '<f8' else 'q'}", *numbers),
        ]
    return digest("arrays", *parts)


def tag_product(secret: bytes, values: Sequence[int]) -> int:
    rows = -(-len(values) // 2048)
    columns = stream(expand(secret, "tag columns"), 16 * 2048)
    weights = stream(expand(secret, "tag rows"), 16 * rows)
    total = 0
    for place, value in enumerate(values):
        row, column = divmod(place, 2048)
        a = int.from_bytes(weights[16 * row : 16 * row + 16], "little")
        b = int.from_bytes(columns[16 * column : 16 * column + 16], "little")
        total += a * value * b
    return total % (1 << 128)


def tag_pad(secret: bytes, member: int) -> int:
    return int.from_bytes(stream(expand(secret, "tag pads"), 16, member), "little")


class Trajectory:
    """State and chain of an epoch (sections 8, 12), with the course of sums."""

    def __init__(self, plan: Plan, advertisements: list[list[Any]], shares: list[bytes]) -> None:
        self.plan, self.members = plan, [item[1] for item in advertisements]
        parts = [digest("advertisement", item[0], bytes([item[1]]), *item[2:]) for item in advertisements]
        self.transcript = digest("transcript", plan.digest, *parts)
        for item, share in zip(advertisements, shares, strict=True):
            assert digest("start share", plan.digest, number(item[1]), share) == item[5]
        seed = digest("start seed", self.transcript, bytes(self.members), b"".join(shares))
        self.state: dict[str, Array] = {}
        first = digest("chain start", self.transcript, seed, bytes(self.members), state_digest(self.state))
        self.links, self.sums = [first], list[dict[str, Array]]()

    @property
    def chain(self) -> bytes:
        return self.links[-1]

    def absorb(self, survivors: list[int], frame: bytes, tag: bytes) -> None:
        step = len(self.sums)
        assert self.plan.federation.may_be_summed(survivors) and set(survivors) <= set(self.members)
        total = unpack(frame, self.plan.words(step), self.plan.bits[step])
        sums = decoded(self.plan, step, total, len(survivors))
        task = self.plan.federation.vectors[step][0]
        self.state = {**self.state, f"{task}.members": ("<i8", [len(survivors)])}
        self.state |= {f"{task}.{name}": array for name, array in sums.items()}
        self.sums.append(sums)
        self.links.append(digest("chain step", self.chain, bytes(survivors), frame, tag, state_digest(self.state)))


# -- sections 8 to 13: a client ---------------------------------------------


@dataclass
class Member:
    """A client, told one message after the other; what it says is a list of (message, frames)."""

    federation: Federation
    me: int
    identity: Ed25519PrivateKey
    inputs: Callable[[int], list[int]]  # step -> x, as ring elements
    draw: Callable[[int], bytes] = secrets.token_bytes
    encapsulate: Callable[[bytes], tuple[bytes, bytes]] = lambda key: MLKEM768PublicKey.from_public_bytes(
        key
    ).encapsulate()
    head: bytes = b""
    certified: dict[str, Array] | None = None
    survivors: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = self.federation.first_head

    def receive(self, data: bytes, frames: Sequence[bytes] = ()) -> list[tuple[bytes, list[bytes]]]:
        tag, *fields = msgpack.unpackb(data)
        handler: Callable[..., list[tuple[bytes, list[bytes]]]] = getattr(self, "on_" + tag.replace("-", "_"))
        return handler(*fields, *([frames] if frames else []))

    @property
    def resilient(self) -> bool:
        return self.federation.mode == "resilient"

    # Section 8.

    def on_invitation(self, offer: list[Any]) -> list[tuple[bytes, list[bytes]]]:
        assert offer[2] == self.head
        self.plan = plan = Plan(self.federation, offer, 0)
        self.share_private, self.kem_seed, self.value = self.draw(32), self.draw(64), self.draw(32)
        self.kem = MLKEM768PrivateKey.from_seed_bytes(self.kem_seed)
        self.mask_keys, self.self_masks = list[bytes](), list[bytes]()
        if self.resilient:
            seed = self.draw(32)
            for step in range(plan.steps):
                context = (plan.digest, number(step))
                self.mask_keys.append(expand(seed, "mask key", *context))
                self.self_masks.append(expand(seed, "self mask", *context))
                seed = expand(seed, "next seed", *context)
        commitments = [
            expand(self_mask, "self mask commitment", plan.digest, number(step))
            for step, self_mask in enumerate(self.self_masks)
        ]
        own = number(self.me)
        share = expand(self.value, "start share")
        parts = [
            public(self.share_private),
            self.kem.public_key().public_bytes_raw(),
            digest("value", plan.digest, own, self.value),
            digest("start share", plan.digest, own, share),
            b"".join(map(public, self.mask_keys)),
            b"".join(commitments),
        ]
        signature = self.identity.sign(labelled("advertisement", plan.digest, bytes([self.me]), *parts))
        self.advertisement = [plan.digest, self.me, *parts, signature]
        return [(msgpack.packb(["advertisement", *self.advertisement]), [])]

    def on_advertisements(self, plan: bytes, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        items = advertisements_in(items)
        assert plan == self.plan.digest and self.advertisement in items
        self.items = {item[1]: item for item in items}
        self.members = [item[1] for item in items]
        assert self.federation.may_be_summed(self.members) and len(items) >= self.plan.threshold
        for item in items:
            key, size = self.federation.identities[item[1]], 32 * self.plan.steps * self.resilient
            assert item[0] == plan and len(item[6]) == len(item[7]) == size
            assert signed(key, item[8], "advertisement", item[0], bytes([item[1]]), *item[2:8])
        keys = [item[2] for item in items] + [key for item in items for key in cut(item[6])]
        points = {(int.from_bytes(key, "little") & ((1 << 255) - 1)) % ((1 << 255) - 19) for key in keys}
        assert len(points) == len(keys) and len({value for item in items for value in item[3:6]}) == 3 * len(items)
        parts = [digest("advertisement", item[0], bytes([item[1]]), *item[2:]) for item in items]
        self.transcript = digest("transcript", plan, *parts)
        self.dealt = self.deal() if self.resilient else {}
        self.agreed, self.own_secrets, seals = dict[int, bytes](), dict[int, bytes](), []
        for other in self.members:
            if other == self.me:
                continue
            self.agreed[other] = agree(self.share_private, self.items[other][2])
            self.own_secrets[other], ciphertext = self.encapsulate(self.items[other][3])
            key = self.seal_key(self.me, other, self.own_secrets[other], ciphertext)
            pair = bytes([self.me, other])
            plaintext = self.value + self.dealt.get(other, b"")
            sealed = ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, labelled("sealed", plan, pair))
            signature = self.identity.sign(labelled("seal", self.transcript, pair, ciphertext, sealed))
            seals.append([other, ciphertext, sealed, signature])
        return [(msgpack.packb(["seals", plan, seals]), [])]

    def seal_key(self, sender: int, receiver: int, secret: bytes, ciphertext: bytes) -> bytes:
        agreed = self.agreed[receiver if sender == self.me else sender]
        return extract(agreed + secret, self.transcript, "seal", number(sender), number(receiver), ciphertext)

    def deal(self) -> dict[int, bytes]:
        """Section 10: shares of all secrets, by Horner's rule."""
        joined = b"".join(self.self_masks + self.mask_keys)
        drawn = self.draw((self.plan.threshold - 1) * len(joined))
        coefficients = [drawn[start : start + len(joined)] for start in range(0, len(drawn), len(joined))]
        shares = {}
        for member in self.members:
            values = bytes(len(joined))
            for row in [*coefficients, joined]:
                values = bytes(product(value, member + 1) ^ more for value, more in zip(values, row, strict=True))
            shares[member] = values
        return shares

    def on_seal_delivery(self, plan: bytes, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest and [item[0] for item in items] == [
            one for one in self.members if one != self.me
        ]
        values, self.roots, self.held = (
            {self.me: self.value},
            dict[int, bytes](),
            {self.me: self.dealt.get(self.me, b"")},
        )
        for sender, ciphertext, sealed, signature in items:
            pair, identity = bytes([sender, self.me]), self.federation.identities[sender]
            assert signed(identity, signature, "seal", self.transcript, pair, ciphertext, sealed)
            theirs = self.kem.decapsulate(ciphertext)
            key = self.seal_key(sender, self.me, theirs, ciphertext)
            plaintext = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, labelled("sealed", plan, pair))
            values[sender], self.held[sender] = plaintext[:32], plaintext[32:]
            assert digest("value", plan, number(sender), values[sender]) == self.items[sender][4]
            low, high = sorted((self.me, sender))
            both = (self.own_secrets[sender], theirs) if self.me == low else (theirs, self.own_secrets[sender])
            secret = self.agreed[sender] + b"".join(both)
            self.roots[sender] = extract(secret, self.transcript, "pair root", number(low), number(high))
        joined = b"".join(values[member] for member in self.members)
        self.group_key = extract(joined, self.transcript, "group key", bytes(self.members))
        self.shares = [expand(values[member], "start share") for member in self.members]
        advertisements = [self.items[member] for member in self.members]
        self.public = Trajectory(self.plan, advertisements, self.shares)
        assert self.public.transcript == self.transcript
        return self.masked(0)

    # Sections 9 and 10.

    def keys(self, step: int) -> Iterator[tuple[int, bytes]]:
        chain = self.public.chain
        if self.resilient:
            yield 1, expand(self.self_masks[step], "self mask stream", self.plan.digest, number(step), chain)
        for other in self.members:
            if other == self.me:
                continue
            sign = 1 if self.me < other else -1
            if self.resilient:
                low, high = sorted((self.me, other))
                secret = agree(self.mask_keys[step], cut(self.items[other][6])[step])
                context = (self.plan.digest, number(step), chain, number(low), number(high))
                yield sign, extract(secret, self.transcript, "pairwise mask", *context)
            else:
                root = self.roots[other]
                for _ in range(step):
                    root = expand(root, "next pair root")
                yield sign, expand(root, "pair mask", number(step), chain)

    def masked(self, step: int) -> list[tuple[bytes, list[bytes]]]:
        words = list(self.inputs(step))
        chain, bits = self.public.chain, self.plan.bits[step]
        secret = expand(self.group_key, "tag key", number(step), chain)
        tag = tag_product(secret, words) + tag_pad(secret, self.me)
        for sign, key in self.keys(step):
            tag += sign * int.from_bytes(expand(key, "tag mask")[:16], "little")
            masks = struct.unpack(
                f"<{len(words)}H", stream(key, 2 * len(words), 2)
            )  # m is at most 16 here, and one piece
            words = [(word + sign * mask) % (1 << bits) for word, mask in zip(words, masks, strict=True)]
        start = b"".join(self.shares) if step == 0 else b""
        message = ["masked-input", self.plan.digest, step, chain, (tag % (1 << 128)).to_bytes(16, "little"), start]
        return [(msgpack.packb(message), [pack(words, bits)])]

    def on_survivors(self, plan: bytes, step: int, members: list[int]) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest and self.federation.may_be_summed(members) and step not in self.survivors
        self.survivors[step] = members
        if members == self.members:
            return self.unmask(step)
        statement = labelled("survivors", self.public.chain, number(step), bytes(members))
        return [(msgpack.packb(["survivor-signature", plan, step, self.identity.sign(statement)]), [])]

    def on_survivor_signatures(self, plan: bytes, step: int, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        parts = (self.public.chain, number(step), bytes(self.survivors[step]))
        assert all(signed(self.federation.identities[one], signature, "survivors", *parts) for one, signature in items)
        assert len({self.me, *(one for one, _ in items)}) >= self.plan.threshold
        return self.unmask(step)

    def unmask(self, step: int) -> list[tuple[bytes, list[bytes]]]:
        rows = [
            cut(self.held[owner])[step if owner in self.survivors[step] else self.plan.steps + step]
            for owner in self.members
        ]
        return [(msgpack.packb(["unmask", self.plan.digest, step, b"".join(rows)]), [])]

    # Sections 11 to 13.

    def on_published(
        self, plan: bytes, step: int, members: list[int], tag: bytes, frames: Sequence[bytes]
    ) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest and step == len(self.public.sums)
        assert self.survivors.get(step, members) == members
        secret = expand(self.group_key, "tag key", number(step), self.public.chain)
        total = unpack(frames[0], self.plan.words(step), self.plan.bits[step])
        expected = tag_product(secret, total) + sum(tag_pad(secret, member) for member in members)
        assert (expected % (1 << 128)).to_bytes(16, "little") == tag, "a sum that is not true"
        self.public.absorb(members, frames[0], tag)
        if step + 1 < self.plan.steps:
            return self.masked(step + 1)
        parts = (self.head, plan, self.public.chain)
        return [(msgpack.packb(["vote", *parts[1:], self.identity.sign(labelled("vote", *parts))]), [])]

    def on_certificate(self, plan: bytes, votes: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        parts = (self.head, plan, self.public.chain)
        assert all(signed(self.federation.identities[one], vote, "vote", *parts) for one, vote in votes)
        assert len({one for one, _ in votes}) >= self.federation.quorum
        self.head, self.certified = digest("head", *parts), self.public.state
        return []


# -- section 14: a verifier ---------------------------------------------


def verified(federation: Federation, data: bytes) -> tuple[bytes, dict[str, Array], Trajectory]:
    """The head after a record's file, and what is learnt from it."""
    magic = b"secure-codream record, version 3\n"
    assert data.startswith(magic)
    at, parts = len(magic), []

    def take() -> bytes:
        nonlocal at
        (size,) = struct.unpack_from(">I", data, at)
        at += 4 + size
        assert at <= len(data)
        return data[at - size : at]

    message = take()
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    parts = [take() for _ in range(count)]
    assert at == len(data)
    tag, offer, items, start, steps, votes = msgpack.unpackb(message)
    assert tag == "epoch-record" and msgpack.packb([tag, offer, items, start, steps, votes]) == message
    advertisements = advertisements_in(items)
    assert offer[2] == federation.first_head
    plan = Plan(federation, offer, 0)
    members = [item[1] for item in advertisements]
    assert federation.may_be_summed(members) and set(members) <= set(offer[1]) and len(members) >= plan.threshold
    for item in advertisements:
        identity = federation.identities[item[1]]
        assert item[0] == plan.digest
        assert signed(identity, item[8], "advertisement", item[0], bytes([item[1]]), *item[2:8])
    public = Trajectory(plan, advertisements, cut(start))
    assert len(steps) == len(parts) == plan.steps
    for (survivors, sum_tag), frame in zip(steps, parts, strict=True):
        public.absorb(survivors, frame, sum_tag)
    statement = (offer[2], plan.digest, public.chain)
    assert all(signed(federation.identities[one], vote, "vote", *statement) for one, vote in votes)
    assert len({one for one, _ in votes}) == len(votes) >= federation.quorum
    return digest("head", *statement), public.state, public
