"""A client and a verifier written anew from docs/protocol.md alone, without this project's modules, in plain integers.

`Member` is one client in either mode, on a complete graph or on a ring: plan, advertisement, seals, transcript, group
key, start, masks, tag, survivors' signature, what is revealed, the check of a sum, chain, vote. `verified` recomputes a
record. Section numbers are the document's. The server of a resilient epoch is in `second_server.py`.
"""

from __future__ import annotations

import base64
import json
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.protocols.second_graph import Graph, degree
from tests.protocols.second_primitives import (
    advertisements_in,
    agree,
    cut,
    digest,
    expand,
    extract,
    labelled,
    masked,
    number,
    numbers,
    pack,
    product,
    public,
    signed,
    stream,
    tag_mask,
    unpack,
)

Array = tuple[str, list[float]]  # type and numbers of one axis

# -- sections 3 to 6 ---------------------------------------------


@dataclass
class Federation:
    """What all know offline: roster, charter, and the course of sums (section 7)."""

    roster_hash: bytes
    identities: dict[int, bytes]
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
    identities = dict(enumerate(member["identity_key"] for member in roster["members"]))
    return chartered(found, len(identities), identities, settings, mode)


def chartered(roster: bytes, members: int, identities: dict[int, bytes], settings: bytes, mode: str) -> Federation:
    """With a roster's digest, and the identity keys of those that matter."""
    count = max(1, members // 3)
    bounds = [members * block // count for block in range(count + 1)]
    blocks = [list(range(bounds[block], bounds[block + 1])) for block in range(count)]
    aggregation = [mode, 1, 3, 8, "aes-256-ctr", "blocks", 20]
    return Federation(
        roster,
        identities,
        [roster, members, settings, aggregation, blocks, None],
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
        # The last kind has a resolution of its own: a ring of 16 bits or more, and as many values as fit.
        members = federation.charter[1]
        room = (members - 1).bit_length()
        self.bits = [8 + room] * (self.steps - 1) + [max(16, 10 + room)]
        self.tops = [255] * (self.steps - 1) + [(2 ** self.bits[-1] - 1) // members]
        self.k: int | None = None
        if federation.mode == "resilient" and members > 200:
            self.k, self.threshold = degree(size, colluders)
            self.least_shown, self.signers = size - size // 10, (size + colluders) // 2 + 1
        else:
            lockstep = federation.mode == "lockstep"
            self.threshold = size if lockstep else max(min(size, 2 * size // 3 + 1), (size + colluders) // 2 + 1)
            self.least_shown = self.signers = self.threshold
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


def transcript_of(plan: Plan, advertisements: list[list[Any]]) -> bytes:
    parts = [digest("advertisement", item[0], numbers(item[1]), *item[2:]) for item in advertisements]
    return digest("transcript", plan.digest, *parts)


def check_advertisements(plan: Plan, items: list[list[Any]]) -> None:
    """Who is shown, each for this plan, of the right size, and signed by the roster's member."""
    federation, members = plan.federation, [item[1] for item in items]
    assert federation.may_be_summed(members) and set(members) <= set(plan.offer[1]) and len(members) >= plan.least_shown
    size = 32 * plan.steps * (federation.mode == "resilient")
    for item in items:
        assert item[0] == plan.digest and len(item[6]) == len(item[7]) == size
        key = federation.identities[item[1]]
        assert signed(key, item[8], "advertisement", item[0], numbers(item[1]), *item[2:8])


class Trajectory:
    """State and chain of an epoch (sections 8, 12), with the course of sums."""

    def __init__(self, plan: Plan, advertisements: list[list[Any]], shares: list[bytes]) -> None:
        self.plan, self.members, self.shares = plan, [item[1] for item in advertisements], shares
        self.transcript = transcript_of(plan, advertisements)
        for item, share in zip(advertisements, shares, strict=True):
            assert digest("start share", plan.digest, number(item[1]), share) == item[5]
        seed = digest("start seed", self.transcript, numbers(*self.members), b"".join(shares))
        self.state: dict[str, Array] = {}
        first = digest("chain start", self.transcript, seed, numbers(*self.members), state_digest(self.state))
        self.links, self.sums, self.steps = [first], list[dict[str, Array]](), list[tuple[list[int], bytes, bytes]]()

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
        self.steps.append((survivors, tag, frame))
        self.links.append(digest("chain step", self.chain, numbers(*survivors), frame, tag, state_digest(self.state)))


def pairwise_key(public: Trajectory, private: bytes, theirs: bytes, pair: tuple[int, int]) -> bytes:
    """Section 10: of the running step's mask keys."""
    context = (public.plan.digest, number(len(public.sums)), public.chain, *map(number, sorted(pair)))
    return extract(agree(private, theirs), public.transcript, "pairwise mask", *context)


def self_mask_key(public: Trajectory, self_mask: bytes) -> bytes:
    return expand(self_mask, "self mask stream", public.plan.digest, number(len(public.sums)), public.chain)


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
        signature = self.identity.sign(labelled("advertisement", plan.digest, numbers(self.me), *parts))
        self.advertisement = [plan.digest, self.me, *parts, signature]
        return [(msgpack.packb(["advertisement", *self.advertisement]), [])]

    def on_advertisements(self, plan: bytes, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        items = advertisements_in(items)
        assert plan == self.plan.digest and self.advertisement in items
        check_advertisements(self.plan, items)
        self.items = {item[1]: item for item in items}
        self.members = [item[1] for item in items]
        keys = [item[2] for item in items] + [key for item in items for key in cut(item[6])]
        points = {(int.from_bytes(key, "little") & ((1 << 255) - 1)) % ((1 << 255) - 19) for key in keys}
        assert len(points) == len(keys) and len({value for item in items for value in item[3:6]}) == 3 * len(items)
        self.transcript = transcript_of(self.plan, items)
        self.graph = Graph(self.transcript, self.members, self.plan.k)
        self.dealt = self.deal() if self.resilient else {}
        self.agreed, self.own_secrets, seals = dict[int, bytes](), dict[int, bytes](), []
        for other in self.graph.partners(self.me):
            self.agreed[other] = agree(self.share_private, self.items[other][2])
            self.own_secrets[other], ciphertext = self.encapsulate(self.items[other][3])
            key = self.seal_key(self.me, other, self.own_secrets[other], ciphertext)
            pair = numbers(self.me, other)
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
        for member, x in self.graph.holders(self.me).items():
            values = bytes(len(joined))
            for row in [*coefficients, joined]:
                values = bytes(product(value, x) ^ more for value, more in zip(values, row, strict=True))
            shares[member] = values
        return shares

    def on_seal_delivery(self, plan: bytes, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest and [item[0] for item in items] == self.graph.partners(self.me)
        values, self.roots = {self.me: self.value}, dict[int, bytes]()
        self.held = {self.me: self.dealt[self.me]} if self.me in self.dealt else {}
        for sender, ciphertext, sealed, signature in items:
            pair, identity = numbers(sender, self.me), self.federation.identities[sender]
            assert signed(identity, signature, "seal", self.transcript, pair, ciphertext, sealed)
            theirs = self.kem.decapsulate(ciphertext)
            key = self.seal_key(sender, self.me, theirs, ciphertext)
            plaintext = ChaCha20Poly1305(key).decrypt(bytes(12), sealed, labelled("sealed", plan, pair))
            values[sender], shares = plaintext[:32], plaintext[32:]
            if self.resilient and self.me in self.graph.holders(sender):
                self.held[sender] = shares
            assert len(shares) == 64 * self.plan.steps * (sender in self.held)
            assert digest("value", plan, number(sender), values[sender]) == self.items[sender][4]
            share = digest("start share", plan, number(sender), expand(values[sender], "start share"))
            assert share == self.items[sender][5]
            low, high = sorted((self.me, sender))
            both = (self.own_secrets[sender], theirs) if self.me == low else (theirs, self.own_secrets[sender])
            secret = self.agreed[sender] + b"".join(both)
            self.roots[sender] = extract(secret, self.transcript, "pair root", number(low), number(high))
        known = sorted(values)
        grouped = known if self.plan.k is None else self.members[:1]
        joined = b"".join(values[member] for member in grouped)
        self.group_key = extract(joined, self.transcript, "group key", numbers(*self.members))
        shares = b"".join(expand(values[member], "start share") for member in known)
        if self.plan.k is not None:
            return [(msgpack.packb(["opened-starts", plan, shares]), [])]
        return self.on_starts(plan, shares)

    def on_starts(self, plan: bytes, shares: bytes) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest
        self.start = shares
        self.public = Trajectory(self.plan, list(self.items.values()), cut(shares))
        return self.masked(0)

    # Sections 9 and 10.

    def keys(self, step: int) -> Iterator[tuple[int, bytes]]:
        chain = self.public.chain
        if self.resilient:
            yield 1, self_mask_key(self.public, self.self_masks[step])
        for other in self.graph.near[self.me]:
            sign = 1 if self.me < other else -1
            if self.resilient:
                private, theirs = self.mask_keys[step], cut(self.items[other][6])[step]
                yield sign, pairwise_key(self.public, private, theirs, (self.me, other))
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
            tag += sign * tag_mask(key)
            words = masked(words, key, sign, bits)
        start = self.start if step == 0 and self.plan.k is None else b""
        message = ["masked-input", self.plan.digest, step, chain, (tag % (1 << 128)).to_bytes(16, "little"), start]
        return [(msgpack.packb(message), [pack(words, bits)])]

    def on_survivors(self, plan: bytes, step: int, members: list[int]) -> list[tuple[bytes, list[bytes]]]:
        assert plan == self.plan.digest and self.federation.may_be_summed(members) and step not in self.survivors
        assert set(members) <= set(self.members)
        if self.plan.k is not None:
            near = self.graph.near
            assert all(len({*near[one]} & {*members}) >= self.plan.threshold for one in members), "too few neighbours"
        self.survivors[step] = members
        if members == self.members and self.plan.k is None:
            return self.unmask(step)
        statement = labelled("survivors", self.public.chain, number(step), numbers(*members))
        return [(msgpack.packb(["survivor-signature", plan, step, self.identity.sign(statement)]), [])]

    def on_survivor_signatures(self, plan: bytes, step: int, items: list[list[Any]]) -> list[tuple[bytes, list[bytes]]]:
        parts = (self.public.chain, number(step), numbers(*self.survivors[step]))
        assert all(signed(self.federation.identities[one], signature, "survivors", *parts) for one, signature in items)
        signers = {self.me, *(one for one, _ in items)}
        assert signers <= set(self.members) and len(signers) >= self.plan.signers, "too few signatures"
        return self.unmask(step)

    def unmask(self, step: int) -> list[tuple[bytes, list[bytes]]]:
        rows = [
            cut(self.held[owner])[step if owner in self.survivors[step] else self.plan.steps + step]
            for owner in self.graph.owners(self.me)
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
        return self.vote()

    def vote(self) -> list[tuple[bytes, list[bytes]]]:
        parts = (self.head, self.plan.digest, self.public.chain)
        return [(msgpack.packb(["vote", *parts[1:], self.identity.sign(labelled("vote", *parts))]), [])]

    def on_epoch_record(
        self,
        offer: list[Any],
        items: list[list[Any]],
        start: bytes,
        steps: list[list[Any]],
        votes: list[list[Any]],
        frames: Sequence[bytes],
    ) -> list[tuple[bytes, list[bytes]]]:
        """Of an epoch that it was not in: it votes after more than c of the epoch's members."""
        self.plan, self.public, voters = replayed(
            self.federation, self.head, [offer, items, start, steps, votes], frames
        )
        assert self.me not in self.public.members
        assert len(voters & set(self.public.members)) > self.federation.colluders
        return self.vote()

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
    tag, *fields = msgpack.unpackb(message)
    assert tag == "epoch-record" and msgpack.packb([tag, *fields]) == message
    plan, public, voters = replayed(federation, federation.first_head, fields, parts)
    assert len(voters) >= federation.quorum
    return digest("head", plan.offer[2], plan.digest, public.chain), public.state, public


def replayed(
    federation: Federation, head: bytes, fields: list[Any], frames: Sequence[bytes]
) -> tuple[Plan, Trajectory, set[int]]:
    """An epoch from its record, and whose valid votes are in it."""
    offer, items, start, steps, votes = fields
    advertisements = advertisements_in(items)
    assert offer[2] == head
    plan = Plan(federation, offer, 0)
    check_advertisements(plan, advertisements)
    public = Trajectory(plan, advertisements, cut(start))
    assert len(steps) == len(frames) == plan.steps
    for (survivors, sum_tag), frame in zip(steps, frames, strict=True):
        public.absorb(survivors, frame, sum_tag)
    statement = (offer[2], plan.digest, public.chain)
    assert all(signed(federation.identities[one], vote, "vote", *statement) for one, vote in votes)
    voters = {one for one, _ in votes}
    assert len(voters) == len(votes)
    return plan, public, voters
