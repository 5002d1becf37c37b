"""Messages: every type round-trips; whatever else the bytes are, only `MalformedMessage` leaves the decoder."""

from __future__ import annotations

import contextlib
import time
import typing
from types import SimpleNamespace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from codream_protocols import messages
from codream_protocols.charter import MAX_STEPS, Offer
from codream_protocols.errors import MalformedMessage
from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES
from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Advertisement,
    Advertisements,
    Ask,
    Awaited,
    Beat,
    Certificate,
    Complaint,
    EpochRecord,
    Farewell,
    GivenUp,
    Hello,
    Invitation,
    MaskedInput,
    OpenedStarts,
    Parcel,
    Piece,
    Published,
    Refusal,
    Seal,
    SealDelivery,
    Seals,
    SignedBy,
    Starts,
    StepRecord,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    Vote,
    Waiting,
    Welcome,
    decode_to_client,
    decode_to_server,
    encode_message,
    largest_message,
)
from secure_codream.simulation.wire import Federation

KEY = st.binary(min_size=32, max_size=32)
MAYBE_KEY = st.just(b"") | KEY
SIGNATURE = st.binary(min_size=64, max_size=64)
TAG = st.binary(min_size=16, max_size=16)
KEYS = st.binary(min_size=32, max_size=128)
MEMBER = st.integers(0, MAX_MEMBERS - 1)
STEP = st.integers(0, 4095)
NAME = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
TEXT = st.text(st.characters(codec="utf-8"), max_size=40) | st.just("…" * 512) | st.just("𝛴" * 512)
VERSION = st.text("abc/1", max_size=32)
EPOCH = st.integers(0, (1 << 53) - 1)


def tuples(items: st.SearchStrategy, least: int = 0, most: int = 4) -> st.SearchStrategy:
    return st.lists(items, min_size=least, max_size=most).map(tuple)


def long(size: int) -> st.SearchStrategy:
    """Bytes too long to be drawn one by one."""
    return st.integers(0, 255).map(lambda byte: bytes([byte]) * size)


ADVERTISEMENT = st.builds(Advertisement, KEY, MEMBER, KEY, long(KEM_KEY_BYTES), KEY, KEY, KEYS, KEYS, SIGNATURE)
SEAL = st.builds(Seal, MEMBER, long(KEM_CIPHERTEXT_BYTES), st.binary(min_size=48, max_size=128), SIGNATURE)
VOTE = st.builds(SignedBy, MEMBER, SIGNATURE)
OFFER = st.builds(Offer, EPOCH, tuples(MEMBER, 1), KEY)
RECORD = st.builds(
    EpochRecord,
    OFFER,
    tuples(ADVERTISEMENT, 1, 2),
    KEYS,
    tuples(st.builds(StepRecord, tuples(MEMBER, 1), TAG), 1),
    tuples(VOTE),
)
NUMBER = st.integers(0, (1 << 32) - 1)
CARRIED = {
    Parcel: st.builds(Parcel, tuples(st.integers(0, 1 << 28), 1)),
    Ask: st.builds(Ask, KEY, NUMBER),
    Piece: st.builds(Piece, KEY, NUMBER),
}
TO_CLIENT = {
    Welcome: st.builds(Welcome, VERSION, st.floats(0.1, 3600), KEY),
    Refusal: st.builds(Refusal, NAME, TEXT, TEXT, MAYBE_KEY),
    Farewell: st.builds(Farewell, TEXT, st.booleans()),
    Waiting: st.builds(
        Waiting, tuples(st.builds(Awaited, MEMBER, st.booleans(), st.integers(-1, (1 << 31) - 1))), st.booleans()
    ),
    Invitation: st.builds(Invitation, OFFER),
    Advertisements: st.builds(Advertisements, KEY, tuples(ADVERTISEMENT)),
    SealDelivery: st.builds(SealDelivery, KEY, tuples(SEAL)),
    Starts: st.builds(Starts, KEY, KEYS),
    Survivors: st.builds(Survivors, KEY, STEP, tuples(MEMBER, 1)),
    SurvivorSignatures: st.builds(SurvivorSignatures, KEY, STEP, tuples(VOTE)),
    Published: st.builds(Published, KEY, STEP, tuples(MEMBER, 1), TAG),
    GivenUp: st.builds(GivenUp, KEY, TEXT),
    Certificate: st.builds(Certificate, KEY, tuples(VOTE)),
    EpochRecord: RECORD,
    **CARRIED,
}
TO_SERVER = {
    Hello: st.builds(Hello, tuples(VERSION, 1), KEY, KEY, EPOCH, MAYBE_KEY, st.integers(0, 4096)),
    Beat: st.builds(Beat, MAYBE_KEY, st.integers(0, 4096)),
    Refusal: TO_CLIENT[Refusal],
    Advertisement: ADVERTISEMENT,
    Seals: st.builds(Seals, KEY, tuples(SEAL)),
    OpenedStarts: st.builds(OpenedStarts, KEY, KEYS),
    Complaint: st.builds(Complaint, KEY, MEMBER),
    MaskedInput: st.builds(MaskedInput, KEY, STEP, KEY, TAG, st.just(b"") | KEYS),
    SurvivorSignature: st.builds(SurvivorSignature, KEY, STEP, SIGNATURE),
    UnmaskShares: st.builds(UnmaskShares, KEY, STEP, KEYS),
    Vote: st.builds(Vote, KEY, KEY, SIGNATURE),
    EpochRecord: RECORD,
    **CARRIED,
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
TAGS = sorted({kind.__struct_config__.tag for kinds in (TO_CLIENT, TO_SERVER) for kind in kinds}, key=str)


@pytest.mark.parametrize("direction", DIRECTIONS)
@given(tag=st.sampled_from(TAGS), fields=st.lists(PLAIN, max_size=6), extra=st.binary(max_size=3))
@settings(max_examples=300)
def test_arbitrary_structures_raise_only_malformed_message(
    direction: str, tag: str, fields: list[typing.Any], extra: bytes
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
        Survivors(bytes(32), 0, (MAX_MEMBERS,)),
        Survivors(bytes(32), 0, (*tuple(range(MAX_MEMBERS)), 0)),
        Published(bytes(32), 0, (1,), bytes(15)),
        Published(bytes(32), 0, (), bytes(16)),
        Invitation(Offer(0, (), bytes(32))),
        Invitation(Offer(-1, (0,), bytes(32))),
        Invitation(Offer(1 << 53, (0,), bytes(32))),
        Invitation(Offer(0, (0,), bytes(31))),
        SealDelivery(bytes(32), (Seal(0, bytes(1088), bytes(47), bytes(64)),)),
        SealDelivery(bytes(32), (Seal(0, bytes(1087), bytes(48), bytes(64)),)),
        SealDelivery(bytes(32), (Seal(MAX_MEMBERS, bytes(1088), bytes(48), bytes(64)),)),
        SurvivorSignatures(bytes(32), 0, (SignedBy(0, bytes(63)),)),
        Certificate(bytes(32), (SignedBy(0, bytes(64)),) * (MAX_MEMBERS + 1)),
        EpochRecord(Offer(0, (0,), bytes(32)), (), bytes(32), (StepRecord((0,), bytes(16)),), ()),
        EpochRecord(Offer(0, (0,), bytes(32)), (), bytes(32), (), ()),
        Farewell("a" * 513, True),
        GivenUp(bytes(32), "a" * 513),
        Refusal("no such code!", "", ""),
        Refusal("name\n", "", ""),
        Refusal("code", "", "", bytes(33)),
        Welcome(PROTOCOL, 0.0, bytes(32)),
        Welcome(PROTOCOL, 1e-9, bytes(32)),
        Welcome(PROTOCOL, float("nan"), bytes(32)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_fields_out_of_range_are_refused(message: messages.ToClient) -> None:
    with pytest.raises(MalformedMessage):
        decode_to_client(encode_message(message))


def test_messages_of_the_other_direction_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        decode_to_client(encode_message(Beat(b"", 0)))
    with pytest.raises(MalformedMessage):
        decode_to_server(encode_message(Survivors(bytes(32), 0, (1,))))


def test_size_limits() -> None:
    for data in (
        msgpack.packb(["unmask", bytes(32), 0, bytes(MAX_MEMBERS * 32 + 1)]),
        msgpack.packb(["survivors", bytes(32), 0, [0] * 4097]),
        b"\x91" * 100_000 + b"\xc0",  # nested arrays
        b"\xdd\xff\xff\xff\xff",  # an array that claims 2^32 - 1 items
        b"\xc6\xff\xff\xff\xff",  # bytes that claim 4 GiB
        b"\xc7\x00\xff",  # an empty time stamp
        b"\xd6\xff\x00\x00\x00\x00",  # a time stamp
    ):
        with pytest.raises(MalformedMessage):
            decode_to_server(data)
    good = encode_message(Survivors(bytes(32), 0, (1,)))
    assert decode_to_client(good, len(good))
    with pytest.raises(MalformedMessage, match="bytes"):
        decode_to_client(good, len(good) - 1)


def test_a_large_message_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(data: bytes) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(messages, "_TO_SERVER", SimpleNamespace(decode=parse))
    with pytest.raises(MalformedMessage):
        decode_to_server(bytes(1001), 1000)


@pytest.mark.parametrize("beginning", [b"", b"\xdc\x00\x06\xd9\x0c", b"\xdd\x00\x00\x00\x06\xdb\x00\x00\x00\x0c"])
def test_a_record_with_more_members_in_its_steps_than_there_are_is_refused_before_it_is_parsed(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its beginning is written."""
    advertisement = Advertisement(
        bytes(32), 0, bytes(32), bytes(KEM_KEY_BYTES), bytes(32), bytes(32), b"", b"", bytes(64)
    )

    def record(*members: int) -> bytes:
        steps = (StepRecord(members, bytes(16)),) * 2
        data = encode_message(EpochRecord(Offer(0, (0,), bytes(32)), (advertisement,), b"", steps, ()))
        return beginning + data[2:] if beginning else data

    assert decode_to_server(record(*range(200)), 1 << 16, 200, 2)
    long = record(*range(200), *range(200))
    assert decode_to_server(long, 1 << 16)
    monkeypatch.setattr(messages, "_TO_SERVER", SimpleNamespace(decode=None))
    with pytest.raises(MalformedMessage, match="a record whose steps have"):
        decode_to_server(long, 1 << 16, 200, 2)


LISTS = {
    "invitation": Invitation(Offer(0, (0, 1, 2), bytes(32))),
    "waiting": Waiting((Awaited(0, False, 0),) * 3, unnamed=False),
    "survivors": Survivors(bytes(32), 0, (0, 1, 2)),
    "published": Published(bytes(32), 0, (0, 1, 2), bytes(16)),
    "signatures": SurvivorSignatures(bytes(32), 0, (SignedBy(0, bytes(64)),) * 3),
    "certificate": Certificate(bytes(32), (SignedBy(0, bytes(64)),) * 3),
    "delivery": SealDelivery(bytes(32), (Seal(0, bytes(1088), bytes(48), bytes(64)),) * 3),
    "record": EpochRecord(
        Offer(0, (0, 1, 2), bytes(32)),
        (Advertisement(bytes(32), 0, bytes(32), bytes(KEM_KEY_BYTES), bytes(32), bytes(32), b"", b"", bytes(64)),),
        b"",
        (StepRecord((0,), bytes(16)),),
        (),
    ),
}


@pytest.mark.parametrize("form", [None, b"\xdc\x00\x03", b"\xdd\x00\x00\x00\x03"], ids=["short", "16", "32"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_more_entries_than_there_are_members_is_refused_before_it_is_parsed(
    kind: str, form: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its length is written."""
    data = encode_message(LISTS[kind])
    if form is not None:
        place = data.rindex(b"\x93") if kind != "record" else data.index(b"\x93\x00\x01")
        data = data[:place] + form + data[place + 1 :]
    assert decode_to_client(data, 1 << 16, 3) == LISTS[kind]
    monkeypatch.setattr(messages, "_TO_CLIENT", SimpleNamespace(decode=None))
    with pytest.raises(MalformedMessage, match="a list of 3 entries"):
        decode_to_client(data, 1 << 16, 2)


def test_every_list_of_a_message_has_the_members_bound_or_one_of_its_own() -> None:
    own = {Hello: 8, Parcel: MAX_STEPS, EpochRecord: MAX_STEPS}
    for kind in {*typing.get_args(messages.ToClient), *typing.get_args(messages.ToServer)}:
        found = inspect.type_info(kind)
        assert isinstance(found, inspect.StructType)
        lists = {field.type.max_length for field in found.fields if isinstance(field.type, inspect.VarTupleType)}
        assert lists <= {MAX_MEMBERS, own.get(kind)}, kind


@pytest.mark.parametrize("mode", ["lockstep", "resilient"])
@pytest.mark.parametrize(("members", "steps"), [(3, 1), (12, 6)])
def test_the_limit_of_a_phase_holds_every_honest_message(mode: str, members: int, steps: int) -> None:
    federation = Federation(members, mode=mode, steps=steps)
    federation.run(2)
    late = federation._client(0, federation.charter, type(federation.diaries[0].memory)())
    federation.emit(federation.server.hello(0, late.hello()))
    limit = largest_message(members, steps, resilient=mode == "resilient")
    assert {EpochRecord, Seals, Advertisements} <= {item.kind for item in federation.sent}
    assert max(len(item.data) for item in federation.sent) <= limit
    assert limit < 40 * max(len(item.data) for item in federation.sent)


def test_nested_arrays_cost_nothing() -> None:
    """A tree of empty arrays, 4 MiB of it, is refused at once, and no object is made of it."""
    data = b"\x93\xa6unmask" + b"\xdd\x00\x40\x00\x00" + b"\x90" * (4 << 20)
    started = time.process_time()
    with pytest.raises(MalformedMessage):
        decode_to_server(data)
    assert time.process_time() - started < 0.5


def test_refusals_never_quote_the_bytes() -> None:
    secret = b"\x9e" * 33
    with pytest.raises(MalformedMessage) as caught:
        decode_to_server(msgpack.packb(["unmask", secret, 0, secret]))
    assert repr(secret)[2:-1] not in str(caught.value) and secret.hex() not in str(caught.value)
