"""The messages, typed and bounded, and their bytes.

One MessagePack array a message: its tag, then its fields in order. Decoding goes straight into frozen types, without a
tree of objects between. A message larger than its phase allows is refused before it is parsed, and so is one with more
entries in a list than the federation has members: what a list costs its reader hangs on this federation, not on the
largest there is. Vectors never enter MessagePack: they travel in frames of their own behind the message and are checked
by the state machines. Numbers of members refer to the roster. `plan` is always the digest of the epoch's plan.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Struct

from codream_protocols.charter import MAX_STEPS, EpochNumber, MemberNumber, Members, Offer
from codream_protocols.errors import MalformedMessage
from codream_protocols.hybrid import KEM_CIPHERTEXT_BYTES, KEM_KEY_BYTES
from codream_protocols.identity import MAX_MEMBERS, Key, Name, Signature
from codream_protocols.keyschedule import KEY_BYTES, digest, numbers
from codream_protocols.tag import TAG_BYTES

SHARED_ROW_BYTES = 2 * KEY_BYTES  # of one step: a share of the self-mask seed and one of the mask key
MAX_SEAL_BYTES = KEY_BYTES + MAX_STEPS * SHARED_ROW_BYTES + 16
SMALL_MESSAGE_BYTES = 16 << 10
MAX_MESSAGE_BYTES = 1 << 28  # the advertisements of 100,000 members have more than half of it
MOST_AGO_SECONDS = (1 << 31) - 1
MAX_FRAME_BYTES = 1 << 28
MAX_PIECES = (1 << 32) - 1

Step = Annotated[int, Meta(ge=0, lt=MAX_STEPS)]
StepKeys = Annotated[bytes, Meta(max_length=MAX_STEPS * KEY_BYTES)]
KemKey = Annotated[bytes, Meta(min_length=KEM_KEY_BYTES, max_length=KEM_KEY_BYTES)]
KemCiphertext = Annotated[bytes, Meta(min_length=KEM_CIPHERTEXT_BYTES, max_length=KEM_CIPHERTEXT_BYTES)]
Sealed = Annotated[bytes, Meta(min_length=KEY_BYTES + 16, max_length=MAX_SEAL_BYTES)]
Tag = Annotated[bytes, Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)]
Text = Annotated[str, Meta(max_length=512)]
StartShares = Annotated[bytes, Meta(max_length=MAX_MEMBERS * KEY_BYTES)]
MaybeKey = Annotated[bytes, Meta(max_length=KEY_BYTES)]


class _Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


# -- opening a connection ---------------------------------------------


class Hello(_Part, frozen=True, tag="hello"):
    """Client to server, first on every connection.

    Attributes:
        versions: the protocol versions it speaks.
        charter: the digest of its charter, which names the roster.
        head: its head.
        epoch: one more than the highest epoch that it has joined.
        plan: the digest of the plan that it holds keys of; empty if none.
        sums: how many of that plan's sums it has.
    """

    versions: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(min_length=1, max_length=8)]
    charter: Key
    head: Key
    epoch: EpochNumber
    plan: MaybeKey
    sums: Annotated[int, Meta(ge=0, le=MAX_STEPS)]


class Welcome(_Part, frozen=True, tag="welcome"):
    """Server to client: the version chosen, how often it wants to hear a `Beat` (seconds), and its own head."""

    version: Annotated[str, Meta(max_length=32)]
    beat_seconds: Annotated[float, Meta(ge=0.1, le=3600)]
    head: Key


class Beat(_Part, frozen=True, tag="beat"):
    """Client to server: still here, perhaps computing; with the plan it holds keys of, and how many sums it has.

    From these a server sees that something it sent was lost, and sends it again.
    """

    plan: MaybeKey
    sums: Annotated[int, Meta(ge=0, le=MAX_STEPS)]


class Refusal(_Part, frozen=True, tag="refusal"):
    """Either way: a message was refused and changed nothing. `code` is an error's code; the rest is for a person.

    What a client sends here depends on its code and on public facts alone. `plan` is the plan that it is about; empty
    if it is about none.
    """

    code: Name
    found: Text
    allowed: Text
    plan: MaybeKey = b""


class Farewell(_Part, frozen=True, tag="farewell"):
    """Server to client: the federation is over; `completed` says whether it came to its end."""

    reason: Text
    completed: bool


class Awaited(_Part, frozen=True):
    """A member that the server waits for: whether it is there, and how many seconds ago it was last heard.

    -1 if it was not heard since the server started.
    """

    member: MemberNumber
    present: bool
    heard: Annotated[int, Meta(ge=-1, le=MOST_AGO_SECONDS)]


class Waiting(_Part, frozen=True, tag="waiting"):
    """Server to clients: for whom it waits, ascending; for nobody any more if there is none and `unnamed` is false.

    Within an epoch it names who is not there. `unnamed`: all that it waits for are there, and have not answered; who,
    and how many, is not said, so that nobody's computing is timed.

    It is for a person to read, and for nothing else: no machine takes it, and nothing proves that it is so.
    """

    items: Annotated[tuple[Awaited, ...], Meta(max_length=MAX_MEMBERS)]
    unnamed: bool


# -- frames that are larger than a piece ---------------------------------------------

PieceNumber = Annotated[int, Meta(ge=0, le=MAX_PIECES)]


class Parcel(_Part, frozen=True, tag="parcel"):
    """Either way: a message stands behind it as a frame, and its own frames, of these bytes, are asked for in pieces.

    Its name is the digest of both (`parcels`).
    """

    sizes: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=MAX_FRAME_BYTES)], ...], Meta(min_length=1, max_length=MAX_STEPS)
    ]


class Ask(_Part, frozen=True, tag="ask"):
    """Either way, of a parcel's receiver: send this piece; or, by the number of all of them, none any more."""

    parcel: Key
    piece: PieceNumber


class Piece(_Part, frozen=True, tag="piece"):
    """Either way, of a parcel's sender: the piece that was asked for follows as a frame."""

    parcel: Key
    piece: PieceNumber


# -- epoch set-up ---------------------------------------------


class Invitation(_Part, frozen=True, tag="invitation"):
    """Server to clients: will you take part in this epoch?"""

    offer: Offer


class Advertisement(_Part, frozen=True, dict=True, tag="advertisement"):
    """A member's public keys of an epoch, signed: to the server, and by it to all.

    Attributes:
        share_key: X25519 key.
        kem_key: ML-KEM-768 key.
        commitment: to a random value; the group key comes from everybody's.
        start_commitment: to the member's share of the start seed.
        mask_keys: resilient: T X25519 mask keys, 32 bytes each; empty in lockstep.
        self_commitments: resilient: T commitments to the self-mask seeds, 32 bytes each; empty in lockstep.
    """

    plan: Key
    member: MemberNumber
    share_key: Key
    kem_key: KemKey
    commitment: Key
    start_commitment: Key
    mask_keys: StepKeys
    self_commitments: StepKeys
    signature: Signature

    def signed_parts(self) -> tuple[bytes, ...]:
        """What the signature covers."""
        return (
            self.plan,
            numbers(self.member),
            self.share_key,
            self.kem_key,
            self.commitment,
            self.start_commitment,
            self.mask_keys,
            self.self_commitments,
        )

    @property
    def agreement_keys(self) -> tuple[bytes, ...]:
        """All its X25519 keys: the one for shares, and each step's mask key."""
        steps = len(self.mask_keys) // KEY_BYTES
        return (self.share_key, *map(self.mask_key, range(steps)))

    def mask_key(self, step: int) -> bytes:
        """The mask key of a step."""
        return self.mask_keys[step * KEY_BYTES : (step + 1) * KEY_BYTES]

    def self_commitment(self, step: int) -> bytes:
        """The self-mask commitment of a step."""
        return self.self_commitments[step * KEY_BYTES : (step + 1) * KEY_BYTES]

    @cached_property
    def digest(self) -> bytes:
        """Digest over everything signed, and the signature."""
        return digest("advertisement", *self.signed_parts(), self.signature)


class Advertisements(_Part, frozen=True, tag="advertisements"):
    """Server to clients: everyone's advertisement."""

    plan: Key
    items: Annotated[tuple[Advertisement, ...], Meta(max_length=MAX_MEMBERS)]


class Seal(_Part, frozen=True):
    """What one member sealed for another: the value, and in resilient mode the shares; signed by the sender.

    `member` is the receiver on the way up and the sender on the way down.
    """

    member: MemberNumber
    kem: KemCiphertext
    ciphertext: Sealed
    signature: Signature

    def sent_by(self, sender: int) -> Seal:
        """The same on its way down."""
        return Seal(sender, self.kem, self.ciphertext, self.signature)


class Seals(_Part, frozen=True, tag="seals"):
    """Client to server: one seal for each other member."""

    plan: Key
    items: Annotated[tuple[Seal, ...], Meta(max_length=MAX_MEMBERS)]


class SealDelivery(_Part, frozen=True, tag="seal-delivery"):
    """Server to a client: what each other member sealed for it."""

    plan: Key
    items: Annotated[tuple[Seal, ...], Meta(max_length=MAX_MEMBERS)]


class OpenedStarts(_Part, frozen=True, tag="opened-starts"):
    """Client to server, of more than 200 members: the start shares that it knows, 32 bytes each.

    Its own and those of its partners, ascending. So each member's share is out if but one who knows it says so.
    """

    plan: Key
    shares: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=MAX_MEMBERS * KEY_BYTES)]


class Starts(_Part, frozen=True, tag="starts"):
    """Server to clients, of more than 200 members: all members' start shares, ascending."""

    plan: Key
    shares: StartShares


class Complaint(_Part, frozen=True, tag="complaint"):
    """Client to server: what `member` sealed for it, and signed, does not open; it has left the epoch."""

    plan: Key
    member: MemberNumber


# -- a step ---------------------------------------------


class MaskedInput(_Part, frozen=True, tag="masked-input"):
    """Client to server: the masked vector follows as one packed frame.

    Attributes:
        chain: chain_t, what the client computed and masked at.
        tag: its masked share of the sum's tag.
        start: all members' start shares, with the first step's vector; empty with the others.
    """

    plan: Key
    step: Step
    chain: Key
    tag: Tag
    start: StartShares


class Survivors(_Part, frozen=True, tag="survivors"):
    """Server to clients, resilient: whose inputs are in the sum."""

    plan: Key
    step: Step
    members: Members


class SurvivorSignature(_Part, frozen=True, tag="survivor-signature"):
    """Client to server, when somebody dropped: its signature over (chain_t, step, members)."""

    plan: Key
    step: Step
    signature: Signature


class SignedBy(_Part, frozen=True):
    """One member's signature."""

    member: MemberNumber
    signature: Signature


class SurvivorSignatures(_Part, frozen=True, tag="survivor-signatures"):
    """Server to clients: who signed the same set."""

    plan: Key
    step: Step
    items: Annotated[tuple[SignedBy, ...], Meta(max_length=MAX_MEMBERS)]


class UnmaskShares(_Part, frozen=True, tag="unmask"):
    """Client to server: for each member of whom it has shares, ascending, one of 32 bytes.

    On a complete graph these are all members, itself among them; else its neighbours.

    Of the self-mask seed for a survivor, of the mask key for one that dropped; never both.
    """

    plan: Key
    step: Step
    shares: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=MAX_MEMBERS * KEY_BYTES)]

    def __repr__(self) -> str:
        return f"<UnmaskShares of step {self.step}, hidden>"  # for the server alone: nothing for a log


class Published(_Part, frozen=True, tag="published"):
    """Server to clients: a step's sum follows as one packed frame; `members` are in it, `tag` is the sum of tags."""

    plan: Key
    step: Step
    members: Members
    tag: Tag


class GivenUp(_Part, frozen=True, tag="given-up"):
    """Server to clients: this epoch ends without a result; the next starts anew."""

    plan: Key
    reason: Text


# -- an epoch's end ---------------------------------------------


class Vote(_Part, frozen=True, tag="vote"):
    """Client to server: its signature over (head, plan, chain_T), once it has checked every sum."""

    plan: Key
    chain: Key
    signature: Signature


class Certificate(_Part, frozen=True, tag="certificate"):
    """Server to clients: the votes for what they have voted for; enough of them, and it counts."""

    plan: Key
    votes: Annotated[tuple[SignedBy, ...], Meta(max_length=MAX_MEMBERS)]


class StepRecord(_Part, frozen=True):
    """A step's survivors and tag; its packed sum is a frame."""

    members: Members
    tag: Tag


class EpochRecord(_Part, frozen=True, tag="epoch-record"):
    """Either way: all that is public of an epoch; the packed sums follow as frames, one a step.

    With enough votes it is what anybody can verify; with some, what a member that was away votes by.

    Attributes:
        offer: the server's offer.
        advertisements: of the epoch's members, ascending.
        start: all members' start shares, 32 bytes each, ascending.
        steps: the steps.
        votes: over (head, plan, chain_T).
    """

    offer: Offer
    advertisements: Annotated[tuple[Advertisement, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]
    start: StartShares
    steps: Annotated[tuple[StepRecord, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    votes: Annotated[tuple[SignedBy, ...], Meta(max_length=MAX_MEMBERS)]


ToClient = (
    Welcome
    | Refusal
    | Farewell
    | Waiting
    | Invitation
    | Advertisements
    | SealDelivery
    | Starts
    | Survivors
    | SurvivorSignatures
    | Published
    | GivenUp
    | Certificate
    | EpochRecord
    | Parcel
    | Ask
    | Piece
)
ToServer = (
    Hello
    | Beat
    | Refusal
    | Advertisement
    | Seals
    | OpenedStarts
    | Complaint
    | MaskedInput
    | SurvivorSignature
    | UnmaskShares
    | Vote
    | EpochRecord
    | Parcel
    | Ask
    | Piece
)


def survivor_statement(chain: bytes, step: int, members: tuple[int, ...]) -> tuple[bytes, ...]:
    """What a survivor signature covers, under the label "survivors"; the chain covers plan, keys and history."""
    return (chain, step.to_bytes(4, "big"), numbers(*members))


def encode_message(message: ToClient | ToServer | EpochRecord) -> bytes:
    """A message's bytes."""
    return msgspec.msgpack.encode(message)


_TO_CLIENT: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
_TO_SERVER: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)


_FIELDS: msgspec.msgpack.Decoder[tuple[msgspec.Raw, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[msgspec.Raw, ...], Meta(max_length=16)]
)


def _lists_of(kind: type | msgspec.inspect.Type) -> tuple[tuple[int, ...], ...]:
    """Where the lists stand that may have an entry for each member: their places in a message, or in a part of it."""
    found = msgspec.inspect.type_info(kind) if isinstance(kind, type) else kind
    if isinstance(found, msgspec.inspect.VarTupleType) and found.max_length == MAX_MEMBERS:
        return ((),)
    if not isinstance(found, msgspec.inspect.StructType):
        return ()
    first = 0 if found.tag is None else 1  # behind the tag
    places = enumerate((field.type for field in found.fields), first)
    return tuple((place, *rest) for place, part in places for rest in _lists_of(part))


_LISTS = {
    str(kind.__struct_config__.tag).encode(): places
    for kind in (*get_args(ToClient), *get_args(ToServer))
    if (places := _lists_of(kind))
}
_STEPS = (1 + EpochRecord.__struct_fields__.index("steps"),)
_RECORD = str(EpochRecord.__struct_config__.tag).encode()
_LONGEST_BEGINNING = 5 + 5 + max(map(len, _LISTS))  # the longest forms of an array's length and a string's, a tag


def decode_to_client(
    data: bytes, most_bytes: int = MAX_MESSAGE_BYTES, members: int = MAX_MEMBERS, steps: int = MAX_STEPS
) -> ToClient:
    """Parse a server's message.

    Args:
        data: the bytes.
        most_bytes: what the present phase allows; see `largest_message`.
        members: of the charter: no list has more entries.
        steps: the most of an epoch: a record has no more members in its steps than `largest_steps` says.

    Raises:
        MalformedMessage: too large, no MessagePack, an unknown tag, a field of the wrong type or range.
    """
    return _decode(_TO_CLIENT, data, most_bytes, members, steps)  # type: ignore[no-any-return]


def decode_to_server(
    data: bytes, most_bytes: int = MAX_MESSAGE_BYTES, members: int = MAX_MEMBERS, steps: int = MAX_STEPS
) -> ToServer:
    """Parse a client's message; arguments and errors as for `decode_to_client`."""
    return _decode(_TO_SERVER, data, most_bytes, members, steps)  # type: ignore[no-any-return]


def largest_message(members: int, steps: int, *, resilient: bool) -> int:
    """Bytes of the largest honest message of an epoch without its frames: seals, or everybody's advertisements."""
    rows = steps if resilient else 0
    seal = KEM_CIPHERTEXT_BYTES + KEY_BYTES + rows * SHARED_ROW_BYTES + 160
    advertisement = KEM_KEY_BYTES + 4 * KEY_BYTES + rows * 2 * KEY_BYTES + 256
    record = members * (advertisement + 80 + KEY_BYTES) + largest_steps(members, steps)
    return min(MAX_MESSAGE_BYTES, max(SMALL_MESSAGE_BYTES, members * max(seal, advertisement) + 1024, record + 1024))


def largest_steps(members: int, steps: int) -> int:
    """Bytes of the steps in the largest honest record of an epoch.

    They are bounded by themselves: a byte of a member's number becomes up to 13 in memory, and a whole record may be as
    large as everybody's keys are.
    """
    number = 2 if members <= 256 else 3 if members <= 1 << 16 else 5
    return steps * (members * number + 64)


def _decode(decoder: Any, data: bytes, most_bytes: int, members: int, steps: int) -> Any:
    if len(data) > most_bytes:
        raise MalformedMessage(f"a message of {len(data)} bytes", f"at most {most_bytes}")
    try:
        if any(tag in data[:_LONGEST_BEGINNING] for tag in _LISTS):
            check_lists(data, members, steps)
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        # The library's text names types and limits, never values of keys or vectors.
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise MalformedMessage(
            f"a message that does not fit its schema ({reason})", "a message of this protocol"
        ) from None


def check_lists(data: bytes | memoryview, members: int, steps: int) -> None:
    """Refuse a message with longer lists than a federation's, before an object is made of any of its fields.

    Args:
        data: the bytes; what is no list where one should stand, its type refuses later.
        members: of the charter.
        steps: the most of an epoch.

    Raises:
        MalformedMessage: a list of more entries than there are members, or steps of a record with more in all.
        msgspec.DecodeError: no MessagePack array.
    """
    fields = _FIELDS.decode(data)
    tag = msgspec.msgpack.decode(_part(fields, (0,)), type=str).encode()
    for places in _LISTS.get(tag, ()):
        if (found := _entries(_part(fields, places))) > members:
            raise MalformedMessage(f"a list of {found} entries", f"at most {members}, one for each member")
    if tag == _RECORD:
        most = largest_steps(members, steps)
        if (size := memoryview(_part(fields, _STEPS)).nbytes) > most:
            raise MalformedMessage(f"a record whose steps have {size} bytes", f"at most {most}")


def _part(fields: tuple[msgspec.Raw, ...], places: tuple[int, ...]) -> msgspec.Raw:
    """The bytes of a part of a message, whose own parts are `fields`; none where it has no such part."""
    first, *rest = places
    found = fields[first] if first < len(fields) else msgspec.Raw()
    return _part(_FIELDS.decode(found), tuple(rest)) if rest else found


def _entries(part: msgspec.Raw) -> int:
    """How many entries a list says that it has; 0 of what is none."""
    data = bytes(memoryview(part)[:5])
    if data[:1] in (b"\xdc", b"\xdd"):
        return int.from_bytes(data[1:3] if data[0] == 0xDC else data[1:5], "big")
    return data[0] & 0x0F if data and data[0] >> 4 == 0x9 else 0
