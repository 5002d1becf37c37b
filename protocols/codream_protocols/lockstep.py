"""All or nothing: a member's keys of one epoch in lockstep, one round trip a step.

    y_i = x_i + sum over j of +-PRG(pair mask key of i and j, at step t and chain_t)      (+ for i < j)

Nobody drops, so all pair masks cancel in the sum over everybody: no self masks, no shares, no unmasking. Nothing is
seen of one member's input, nor of any part of the cohort's, with up to n - 2 colluders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import hybrid, keyschedule
from codream_protocols.charter import Plan
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import LocalProtocolError, ShareRefused
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import Advertisement, Seal
from codream_protocols.neighbours import Ring
from codream_protocols.secret import Secret
from codream_protocols.spans import part_of_sum

_ONE_USE_NONCE = bytes(12)  # each seal key seals one message


class SealDoesNotOpen(ShareRefused):
    """What a member sealed and signed is not what it should be: that pair cannot make an epoch together."""

    def __init__(self, member: int) -> None:
        super().__init__(f"a seal of member {member} that does not open", "what it sealed in this epoch")
        self.member = member


class Signing(Protocol):
    """Signs labelled parts; an identity key does."""

    def sign(self, label: str, *parts: bytes) -> bytes:
        """Sign the parts under a domain label; 64 bytes."""


@dataclass(frozen=True, repr=False)
class Opened:
    """What a member has once it has opened the others' seals.

    Attributes:
        members: of the epoch.
        advertised: their advertisements.
        transcript: of the set-up.
        rests: of each other member, what its seal held beside its value.
        secrets: that each other member made and encapsulated to this one.
    """

    members: tuple[int, ...]
    advertised: Mapping[int, Advertisement]
    transcript: bytes
    rests: Mapping[int, bytes]
    secrets: Mapping[int, bytes]


class LockstepKeys:
    """One member's secrets of one epoch, from its advertisement to its last mask.

    Args:
        plan: the epoch's plan.
        member: this member's number.
        random_bytes: a cryptographic generator, n -> n bytes.
        agree: X25519, if not `keyschedule.agree`.
    """

    def __init__(
        self, plan: Plan, member: int, random_bytes: RandomBytes, agree: keyschedule.Agree | None = None
    ) -> None:
        self._plan, self._member, self._random = plan, member, random_bytes
        self._agree = agree or keyschedule.agree
        self._share_private = Secret(random_bytes(KEY_BYTES))
        self._kem: hybrid.KemKey | None = hybrid.KemKey(random_bytes(hybrid.KEM_SEED_BYTES))
        self._value = Secret(random_bytes(KEY_BYTES))
        self._agreed: dict[int, Secret] = {}
        self._encapsulated: dict[int, Secret] = {}
        self._roots: dict[int, Secret] = {}
        self._root_step = 0
        self._ring: Ring | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of member {self._member}, hidden>"

    # -- set-up ---------------------------------------------

    def stand_on(self, ring: Ring) -> None:
        """Take this graph for the epoch's, before anything is sealed."""
        self._ring = ring

    def advertise(self, signer: Signing) -> Advertisement:
        """This member's signed public keys."""
        assert self._kem is not None  # noqa: S101 - until `open`
        plan = self._plan.digest
        mask_keys, commitments = self._step_keys()
        unsigned = Advertisement(
            plan,
            self._member,
            keyschedule.public_key(self._share_private.reveal()),
            self._kem.public,
            hybrid.commit(plan, self._member, self._value.reveal()),
            hybrid.commit_start(plan, self._member, hybrid.start_share(self._value.reveal())),
            mask_keys,
            commitments,
            bytes(64),
        )
        signature = signer.sign("advertisement", *unsigned.signed_parts())
        return msgspec.structs.replace(unsigned, signature=signature)

    def seal(self, signer: Signing, transcript: bytes, advertised: Mapping[int, Advertisement]) -> tuple[Seal, ...]:
        """What this member seals for each other one.

        Raises:
            CohortRefused: a key of low order or of the wrong form.
        """
        plaintexts = self._plaintexts(tuple(advertised))
        own_private, seals = keyschedule.prepared(self._share_private.reveal()), []
        for other, advertisement in advertised.items():
            if other == self._member:
                continue
            agreed = self._agree(own_private, advertisement.share_key)
            secret, kem = hybrid.encapsulate(advertisement.kem_key)
            self._agreed[other], self._encapsulated[other] = Secret(agreed), Secret(secret)
            key = hybrid.seal_key(
                agreed, secret, transcript=transcript, sender=self._member, receiver=other, ciphertext=kem
            )
            additional = self._additional(self._member, other)
            ciphertext = ChaCha20Poly1305(key).encrypt(_ONE_USE_NONCE, plaintexts[other], additional)
            signature = signer.sign("seal", *seal_statement(transcript, self._member, other, kem, ciphertext))
            seals.append(Seal(other, kem, ciphertext, signature))
        return tuple(seals)

    def open(
        self,
        transcript: bytes,
        members: tuple[int, ...],
        advertised: Mapping[int, Advertisement],
        seals: Mapping[int, Seal],
    ) -> list[bytes]:
        """Open what the others sealed; returns all members' values, in their order. Changes nothing if it raises.

        On a ring, `members` are this one and its partners.

        Raises:
            SealDoesNotOpen: or a value that is not what its member committed to.
        """
        assert self._kem is not None  # noqa: S101 - opened once
        plan, values, rests, secrets = self._plan.digest, list[bytes](), {}, {}
        for other in members:
            if other == self._member:
                values.append(self._value.reveal())
                continue
            seal, agreed = seals[other], self._agreed[other].reveal()
            secrets[other] = self._kem.decapsulate(seal.kem)
            key = hybrid.seal_key(
                agreed, secrets[other], transcript=transcript, sender=other, receiver=self._member, ciphertext=seal.kem
            )
            try:
                plaintext = ChaCha20Poly1305(key).decrypt(
                    _ONE_USE_NONCE, seal.ciphertext, self._additional(other, self._member)
                )
            except InvalidTag:
                raise SealDoesNotOpen(other) from None
            value, rests[other] = plaintext[:KEY_BYTES], plaintext[KEY_BYTES:]
            share = hybrid.commit_start(plan, other, hybrid.start_share(value))
            item = advertised[other]
            if hybrid.commit(plan, other, value) != item.commitment or share != item.start_commitment:
                raise SealDoesNotOpen(other)
            values.append(value)
        self._keep(Opened(members, advertised, transcript, rests, secrets))
        for secret in (self._share_private, self._value, *self._agreed.values(), *self._encapsulated.values()):
            secret.erase()
        self._agreed, self._encapsulated, self._kem = {}, {}, None
        return values

    # -- a step ---------------------------------------------

    @part_of_sum("masking")
    def stream_keys(self, step: int, chain: bytes) -> list[tuple[bytes, bool]]:
        """The step's mask keys, each with whether its stream is taken away.

        Raises:
            LocalProtocolError: asked again, or for an earlier step: masks are made once.
        """
        if step < self._root_step:
            raise LocalProtocolError(f"masks of step {step}", f"step {self._root_step} or later: they are made once")
        self.pass_over(step)
        keys = [
            (hybrid.pair_mask_key(root.reveal(), step, chain), self._member > other)
            for other, root in self._roots.items()
        ]
        self.pass_over(step + 1)  # from here on nobody, this member included, can make the step's masks again
        return keys

    def pass_over(self, step: int) -> None:
        """Erase what belongs to earlier steps."""
        while self._root_step < step:
            for other, root in self._roots.items():
                following = Secret(hybrid.next_root(root.reveal()))
                root.erase()
                self._roots[other] = following
            self._root_step += 1

    def erase(self) -> None:
        """Erase everything."""
        held = (self._agreed, self._encapsulated, self._roots)
        for secret in (self._share_private, self._value, *(one for part in held for one in part.values())):
            secret.erase()
        self._kem = None

    # -- what the resilient mode adds to ---------------------------------------------

    def _step_keys(self) -> tuple[bytes, bytes]:
        """Public mask keys and self-mask commitments of all steps."""
        return b"", b""

    def _plaintexts(self, receivers: tuple[int, ...]) -> dict[int, bytes]:
        """What is sealed for each."""
        return dict.fromkeys(receivers, self._value.reveal())

    def _keep(self, opened: Opened) -> None:
        for other, rest in opened.rests.items():
            if rest:
                raise SealDoesNotOpen(other)
        for other, theirs in opened.secrets.items():
            agreed, own = self._agreed[other].reveal(), self._encapsulated[other].reveal()
            lower, higher = (own, theirs) if self._member < other else (theirs, own)
            pair = self._member, other
            root = hybrid.pair_root(agreed, lower, higher, transcript=opened.transcript, pair=pair)
            self._roots[other] = Secret(root)

    def _additional(self, sender: int, receiver: int) -> bytes:
        return keyschedule.labelled("sealed", self._plan.digest, keyschedule.numbers(sender, receiver))


def seal_statement(transcript: bytes, sender: int, receiver: int, kem: bytes, ciphertext: bytes) -> tuple[bytes, ...]:
    """What the signature of a seal covers, under the label "seal"."""
    return (transcript, keyschedule.numbers(sender, receiver), kem, ciphertext)


def plain_seal_bytes(plan: Plan, *, shares: bool = True) -> int:
    """Bytes of the ciphertext of a seal of an epoch; on a ring, who is no neighbour is sealed no shares."""
    rows = 2 * plan.steps if shares and plan.aggregation.mode == "resilient" else 0
    return KEY_BYTES + rows * KEY_BYTES + 16
