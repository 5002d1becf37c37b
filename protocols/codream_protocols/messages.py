"""The messages, typed and bounded, and their bytes.

One MessagePack array a message: its tag, then its fields in order. Decoding has two layers: `msgpack` with limits
(nothing is allocated beyond them), then `msgspec.convert` into frozen types with ranges. Vectors and dreams never
enter MessagePack: they travel in frames of their own behind the message and are checked by the state machines.
Numbers of members refer to the roster. `plan` is always the digest of the epoch's plan.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgpack
import msgspec
from msgspec import Meta, Struct

from codream_protocols.errors import MalformedMessage
from codream_protocols.identity import MAX_MEMBERS, Key, Name, Signature
from codream_protocols.keyschedule import KEY_BYTES, digest
from codream_protocols.plan import MAX_STEPS, Cohort, MemberNumber, Plan

MAX_MESSAGE_BYTES = 64 << 20
MAX_SHARE_BYTES = 2 * MAX_STEPS * KEY_BYTES + 16

Step = Annotated[int, Meta(ge=0, lt=MAX_STEPS)]
StepKeyList = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=MAX_STEPS * KEY_BYTES)]
Sealed = Annotated[bytes, Meta(min_length=16, max_length=MAX_SHARE_BYTES)]
Text = Annotated[str, Meta(max_length=512)]


class _Message(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


# -- opening a connection ---------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    """Client to server, first on every connection: versions it speaks and the roster it holds."""

    versions: Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(min_length=1, max_length=8)]
    roster: Key


class Welcome(_Message, frozen=True, tag="welcome"):
    """Server to client: the version chosen, and how often it wants to hear a `Beat` (seconds)."""

    version: Annotated[str, Meta(max_length=32)]
    beat_seconds: Annotated[float, Meta(gt=0, le=3600)]


class Beat(_Message, frozen=True, tag="beat"):
    """Client to server: still here, perhaps computing."""


class Refusal(_Message, frozen=True, tag="refusal"):
    """Either way: a message was refused and changed nothing. `code` is an error's code; the rest is for a person."""

    code: Name
    found: Text
    allowed: Text


class Farewell(_Message, frozen=True, tag="farewell"):
    """Server to client: the federation is over, or an epoch was given up (`plan` says which; empty for all).

    `completed` says whether what is over came to its end.
    """

    plan: Annotated[bytes, Meta(max_length=KEY_BYTES)]
    reason: Text
    completed: bool = False


# -- epoch set-up ---------------------------------------------


class PlanOffer(_Message, frozen=True, tag="plan"):
    """Server to clients: will you take part in this epoch?"""

    plan: Plan


class Advertisement(_Message, frozen=True, tag="advertisement"):
    """A client's public keys of an epoch, signed: to the server, and by it to all.

    Attributes:
        share_key: X25519 key for the transport of shares.
        mask_keys: T X25519 mask keys, 32 bytes each.
        commitments: T commitments to the self-mask seeds, 32 bytes each.
    """

    plan: Key
    member: MemberNumber
    share_key: Key
    mask_keys: StepKeyList
    commitments: StepKeyList
    signature: Signature

    def signed_parts(self) -> tuple[bytes, ...]:
        """What the signature covers."""
        return (self.plan, bytes([self.member]), self.share_key, self.mask_keys, self.commitments)

    def mask_key(self, step: int) -> bytes:
        """The mask key of a step."""
        return self.mask_keys[step * KEY_BYTES : (step + 1) * KEY_BYTES]

    def commitment(self, step: int) -> bytes:
        """The self-mask commitment of a step."""
        return self.commitments[step * KEY_BYTES : (step + 1) * KEY_BYTES]

    @property
    def digest(self) -> bytes:
        """Digest over everything signed, and the signature."""
        return digest("advertisement", *self.signed_parts(), self.signature)


class Advertisements(_Message, frozen=True, tag="advertisements"):
    """Server to clients: everyone's advertisement."""

    plan: Key
    items: Annotated[tuple[Advertisement, ...], Meta(max_length=MAX_MEMBERS)]


class SealedShare(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One ciphertext with shares; `member` is the receiver on the way up and the sender on the way down."""

    member: MemberNumber
    ciphertext: Sealed


class Shares(_Message, frozen=True, tag="shares"):
    """Client to server: one ciphertext for each other member."""

    plan: Key
    items: Annotated[tuple[SealedShare, ...], Meta(max_length=MAX_MEMBERS)]


class ShareDelivery(_Message, frozen=True, tag="share-delivery"):
    """Server to a client: the epoch's members, and what they sealed for this one."""

    plan: Key
    members: Cohort
    items: Annotated[tuple[SealedShare, ...], Meta(max_length=MAX_MEMBERS)]


# -- a step ---------------------------------------------

Shape = Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 26)], ...], Meta(min_length=1, max_length=4)]


class Broadcast(_Message, frozen=True, tag="broadcast"):
    """Server to clients: the public state of a step; each array follows as a frame of little-endian float32.

    Attributes:
        clips: the bound of each block of this step's vector, at most the plan's.
        shapes: the arrays' shapes.
    """

    plan: Key
    step: Step
    clips: Annotated[tuple[float, ...], Meta(min_length=1, max_length=64)]
    shapes: Annotated[tuple[Shape, ...], Meta(max_length=8)]

    def digest(self, frames: tuple[bytes, ...]) -> bytes:
        """What masks are bound to: the message and every byte behind it."""
        return digest("broadcast", msgspec.msgpack.encode(self), *frames)


class MaskedInput(_Message, frozen=True, tag="masked-input"):
    """Client to server: the masked vector follows as one packed frame. `broadcast` is the digest of what it answers."""

    plan: Key
    step: Step
    broadcast: Key


class Survivors(_Message, frozen=True, tag="survivors"):
    """Server to clients: whose inputs are in the sum."""

    plan: Key
    step: Step
    members: Cohort


class SurvivorSignature(_Message, frozen=True, tag="survivor-signature"):
    """Client to server, when somebody dropped: its signature over (transcript, step, members)."""

    plan: Key
    step: Step
    signature: Signature


class SignedBy(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member's signature over a survivor set."""

    member: MemberNumber
    signature: Signature


class SurvivorSignatures(_Message, frozen=True, tag="survivor-signatures"):
    """Server to clients: who signed the same set."""

    plan: Key
    step: Step
    items: Annotated[tuple[SignedBy, ...], Meta(max_length=MAX_MEMBERS)]


class UnmaskShares(_Message, frozen=True, tag="unmask"):
    """Client to server: for each member of the epoch, ascending, one share of 32 bytes.

    Of the self-mask seed for a survivor, of the mask key for one that dropped; never both.
    """

    plan: Key
    step: Step
    shares: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=MAX_MEMBERS * KEY_BYTES)]

    def __repr__(self) -> str:
        return f"<UnmaskShares of step {self.step}, hidden>"  # for the server alone: nothing for a log


ToClient = (
    Welcome
    | Refusal
    | Farewell
    | PlanOffer
    | Advertisements
    | ShareDelivery
    | Broadcast
    | Survivors
    | SurvivorSignatures
)
ToServer = Hello | Beat | Refusal | Advertisement | Shares | MaskedInput | SurvivorSignature | UnmaskShares


def survivor_statement(transcript: bytes, step: int, members: tuple[int, ...]) -> tuple[bytes, ...]:
    """What a survivor signature covers, under the label "survivors"; the transcript covers the plan and all keys."""
    return (transcript, step.to_bytes(4, "big"), bytes(members))


def encode_message(message: ToClient | ToServer) -> bytes:
    """A message's bytes."""
    return msgspec.msgpack.encode(message)


def decode_to_client(data: bytes) -> ToClient:
    """Parse a server's message.

    Raises:
        MalformedMessage: too large, no MessagePack, an unknown tag, a field of the wrong type or range.
    """
    message: ToClient = _decode(data, ToClient)
    return message


def decode_to_server(data: bytes) -> ToServer:
    """Parse a client's message; raises as `decode_to_client` does."""
    message: ToServer = _decode(data, ToServer)
    return message


def _decode(data: bytes, kind: Any) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"a message of {len(data)} bytes", f"at most {MAX_MESSAGE_BYTES}")
    try:
        plain = msgpack.unpackb(
            data,
            raw=False,
            max_str_len=4 * 512,  # `Text` counts characters, of up to four bytes each
            max_bin_len=MAX_SHARE_BYTES,
            max_array_len=MAX_STEPS,
            max_map_len=0,
            max_ext_len=0,
        )
        return msgspec.convert(plain, type=kind, strict=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException, msgspec.ValidationError) as error:
        # The text of either library names types and limits, never values of keys or vectors.
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise MalformedMessage(
            f"a message that does not fit its schema ({reason})", "a message of this protocol"
        ) from None
