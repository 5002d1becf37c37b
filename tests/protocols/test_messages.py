"""Messages: every type round-trips; whatever else the bytes are, only `MalformedMessage` leaves the decoder."""

from __future__ import annotations

import contextlib
import typing

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codream_protocols import messages
from codream_protocols.errors import MalformedMessage
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Beat,
    Broadcast,
    Farewell,
    Hello,
    MaskedInput,
    PlanOffer,
    Refusal,
    SealedShare,
    ShareDelivery,
    Shares,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    Welcome,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.plan import Block, Plan, VectorSpec

KEY = st.binary(min_size=32, max_size=32)
SIGNATURE = st.binary(min_size=64, max_size=64)
KEYS = st.binary(min_size=32, max_size=128)
MEMBER = st.integers(0, 199)
STEP = st.integers(0, 4095)
NAME = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.just("…" * 512) | st.just("𝛴" * 512)
VERSION = st.text("abc/1", max_size=32)
FLOAT = st.floats(allow_nan=False)


def tuples(items: st.SearchStrategy, least: int = 0, most: int = 4) -> st.SearchStrategy:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


ADVERTISEMENT = st.builds(Advertisement, KEY, MEMBER, KEY, KEYS, KEYS, SIGNATURE)
SEALED = st.builds(SealedShare, MEMBER, st.binary(min_size=16, max_size=80))
BLOCK = st.builds(Block, NAME, st.integers(1, 1 << 26), FLOAT)
SPEC = st.builds(VectorSpec, NAME, tuples(BLOCK, 1))
PLAN = st.builds(
    Plan,
    VERSION,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    KEY,
    KEY,
    tuples(MEMBER, 1),
    tuples(SPEC, 1, 2),
    tuples(st.integers(0, 15), 1),
    st.integers(1, 31),
    st.integers(1, 32),
    VERSION,
    st.integers(1, 200),
    st.integers(1, 200),
    MEMBER,
)
TO_CLIENT = {
    Welcome: st.builds(Welcome, VERSION, st.floats(0.001, 3600)),
    Refusal: st.builds(Refusal, NAME, TEXT, TEXT),
    Farewell: st.builds(Farewell, st.binary(max_size=32), TEXT),
    PlanOffer: st.builds(PlanOffer, PLAN),
    Advertisements: st.builds(Advertisements, KEY, tuples(ADVERTISEMENT)),
    ShareDelivery: st.builds(ShareDelivery, KEY, tuples(MEMBER, 1), tuples(SEALED)),
    Broadcast: st.builds(Broadcast, KEY, STEP, tuples(FLOAT, 1), tuples(tuples(st.integers(1, 1 << 26), 1), 0, 8)),
    Survivors: st.builds(Survivors, KEY, STEP, tuples(MEMBER, 1)),
    SurvivorSignatures: st.builds(SurvivorSignatures, KEY, STEP, tuples(st.builds(SignedBy, MEMBER, SIGNATURE))),
}
TO_SERVER = {
    Hello: st.builds(Hello, tuples(VERSION, 1), KEY),
    Beat: st.builds(Beat),
    Refusal: TO_CLIENT[Refusal],
    Advertisement: ADVERTISEMENT,
    Shares: st.builds(Shares, KEY, tuples(SEALED)),
    MaskedInput: st.builds(MaskedInput, KEY, STEP, KEY),
    SurvivorSignature: st.builds(SurvivorSignature, KEY, STEP, SIGNATURE),
    UnmaskShares: st.builds(UnmaskShares, KEY, STEP, KEYS),
}
DIRECTIONS = {"to client": (decode_to_client, TO_CLIENT), "to server": (decode_to_server, TO_SERVER)}


def test_every_message_type_is_covered() -> None:
    assert set(TO_CLIENT) == set(typing.get_args(messages.ToClient))
    assert set(TO_SERVER) == set(typing.get_args(messages.ToServer))


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(data=st.data())
@settings(max_examples=300)
def test_round_trip(direction: str, data: st.DataObject) -> None:
    decode, kinds = DIRECTIONS[direction]
    kind = data.draw(st.sampled_from(sorted(kinds, key=lambda kind: kind.__name__)))
    message = data.draw(kinds[kind])
    encoded = encode_message(message)
    back = decode(encoded)
    assert type(back) is kind and back == message and encode_message(back) == encoded


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(noise=st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bytes_raise_only_malformed_message(direction: str, noise: bytes) -> None:
    decode, kinds = DIRECTIONS[direction]
    with contextlib.suppress(MalformedMessage):
        assert type(decode(noise)) in kinds


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40),
    lambda items: st.lists(items, max_size=5) | st.dictionaries(st.text(max_size=3), items, max_size=3),
    max_leaves=12,
)
TAGS = [
    "hello", "welcome", "beat", "refusal", "farewell", "plan", "advertisement", "advertisements", "shares",
    "share-delivery", "broadcast", "masked-input", "survivors", "survivor-signature", "survivor-signatures", "unmask",
]  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(tag=st.sampled_from(TAGS), fields=st.lists(PLAIN, max_size=6), extra=st.binary(max_size=3))
@settings(max_examples=300)
def test_arbitrary_structures_raise_only_malformed_message(
    direction: str, tag: str, fields: list, extra: bytes
) -> None:
    decode, kinds = DIRECTIONS[direction]
    with contextlib.suppress(MalformedMessage):
        assert type(decode(msgpack.packb([tag, *fields]) + extra)) in kinds


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(data=st.data())
@settings(max_examples=300)
def test_mutated_messages_raise_only_malformed_message(direction: str, data: st.DataObject) -> None:
    decode, kinds = DIRECTIONS[direction]
    encoded = bytearray(encode_message(data.draw(st.one_of(list(kinds.values())))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(encoded) - 1))
        match data.draw(st.sampled_from(["set", "delete", "insert", "cut"])):
            case "set":
                encoded[place] = data.draw(st.integers(0, 255))
            case "delete" if len(encoded) > 1:
                del encoded[place]
            case "insert":
                encoded.insert(place, data.draw(st.integers(0, 255)))
            case "cut" if place:
                del encoded[place:]
    with contextlib.suppress(MalformedMessage):
        assert type(decode(bytes(encoded))) in kinds


@pytest.mark.parametrize(
    "message",
    [
        Survivors(bytes(31), 0, (1,)),
        Survivors(bytes(32), 4096, (1,)),
        Survivors(bytes(32), -1, (1,)),
        Survivors(bytes(32), 0, ()),
        Survivors(bytes(32), 0, (200,)),
        Survivors(bytes(32), 0, (*tuple(range(200)), 0)),
        Broadcast(bytes(32), 0, (), ()),
        Broadcast(bytes(32), 0, (1.0,), ((),)),
        Broadcast(bytes(32), 0, (1.0,), ((0,),)),
        Broadcast(bytes(32), 0, (1.0,), ((1, 1, 1, 1, 1),)),
        Broadcast(bytes(32), 0, (1.0,), ((1,),) * 9),
        ShareDelivery(bytes(32), (0,), (SealedShare(0, bytes(15)),)),
        SurvivorSignatures(bytes(32), 0, (SignedBy(0, bytes(63)),)),
        Farewell(bytes(33), ""),
        Farewell(b"", "a" * 513),
        Refusal("no such code!", "", ""),
        Welcome(PROTOCOL, 0.0),
    ],
    ids=repr,
)
def test_fields_out_of_range_are_refused(message: messages.ToClient) -> None:
    with pytest.raises(MalformedMessage):
        decode_to_client(encode_message(message))


def test_messages_of_the_other_direction_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode_to_client(encode_message(Beat()))
    with pytest.raises(MalformedMessage):
        decode_to_server(encode_message(Survivors(bytes(32), 0, (1,))))


def test_size_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (
        msgpack.packb(["unmask", bytes(32), 0, bytes(messages.MAX_SHARE_BYTES + 1)]),
        msgpack.packb(["survivors", bytes(32), 0, [0] * 4097]),
        b"\x91" * 100_000 + b"\xc0",  # nested arrays
        b"\xdd\xff\xff\xff\xff",  # an array that claims 2^32 - 1 items
        b"\xc6\xff\xff\xff\xff",  # bytes that claim 4 GiB
        b"\xc7\x00\xff",  # an empty time stamp
        b"\xd6\xff\x00\x00\x00\x00",  # a time stamp
    ):
        with pytest.raises(MalformedMessage):
            decode_to_server(data)
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 10)
    with pytest.raises(MalformedMessage):
        decode_to_server(bytes(11))


def test_refusals_never_quote_the_bytes() -> None:
    secret = b"\x9e" * 33
    with pytest.raises(MalformedMessage) as caught:
        decode_to_server(msgpack.packb(["unmask", secret, 0, secret]))
    assert repr(secret)[2:-1] not in str(caught.value) and secret.hex() not in str(caught.value)


@given(
    first=st.builds(Broadcast, KEY, STEP, tuples(FLOAT, 1), st.just(((2,),))), frame=st.binary(min_size=8, max_size=8)
)
def test_a_broadcast_digest_covers_message_and_frames(first: Broadcast, frame: bytes) -> None:
    digests = {
        first.digest((frame,)),
        first.digest((frame, b"")),
        first.digest((frame[:4], frame[4:])),
        Broadcast(first.plan, (first.step + 1) % 4096, first.clips, first.shapes).digest((frame,)),
        Broadcast(first.plan, first.step, (*first.clips, 1.0), first.shapes).digest((frame,)),
        Broadcast(first.plan, first.step, first.clips, ((1, 2),)).digest((frame,)),
    }
    assert len(digests) == 6
