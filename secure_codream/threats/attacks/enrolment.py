"""A server that cheats before the first step: keys, members, views, seals, charters, rosters, offers, restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import hybrid, identity, keyschedule
from codream_protocols.charter import even_blocks
from codream_protocols.client import State
from codream_protocols.errors import ProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys
from codream_protocols.messages import Advertisement, Complaint, Invitation, Seal, SealDelivery, Seals
from codream_protocols.resilient import make_keys
from codream_protocols.secret import Secret
from codream_protocols.server import ServerProtocol
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, lockstep, resilient
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.adversary import (
    Forger,
    advertised,
    announce,
    credulous,
    delivered,
    delivery,
    open_sum,
    parcel,
    resigned,
    said,
    sealed_by,
    set_up_by_hand,
    shown,
)
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.evidence import Try, Vector, counted, recovered
from secure_codream.threats.laboratory.laboratory import Laboratory
from secure_codream.threats.laboratory.liar import set_up_with_liar
from secure_codream.threats.laboratory.switches import Switch, weakened

COLLUDER, OTHER = 1, 2
SIGNED = ("_rule_signed_advertisement", "_rule_signed_seal")
BELIEVES_ALL = weakened(Defences().without(*SIGNED))


# -- who takes part ---------------------------------------------


class SubstitutedKeys(Attack):
    """A man in the middle of what members seal for each other."""

    name = "substituted-keys"
    adversary = "malicious server"
    goal = "Swap the other members' keys for its own, read what is sealed for them, and unmask the victim's input."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P5",)
    defences = SIGNED

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Show the victim honest mask keys beside own keys for the seals; open and answer its seals."""

        def attempt() -> tuple[Vector, Vector]:
            federation = resilient(laboratory, defences)
            items = advertised(federation)
            plan, everyone = federation.plan, federation.everybody
            forgers = {member: Forger(federation.signers[member].public) for member in all_but(federation, VICTIM)}
            fakes, views = {}, {VICTIM: items[VICTIM]}
            for member, forger in forgers.items():
                fakes[member] = make_keys(plan, member, laboratory.random(f"{self.name} {member}").randbytes)
                own = fakes[member].advertise(forger)
                views[member] = msgspec.structs.replace(
                    items[member],
                    share_key=own.share_key,
                    kem_key=own.kem_key,
                    commitment=own.commitment,
                    start_commitment=own.start_commitment,
                )
            transcript = adversary.transcript_of(federation, views)
            sealed = {VICTIM: said(federation.tell(VICTIM, shown(federation, views)))}
            for member, fake in fakes.items():
                ordered = {one: views[one] for one in everyone}
                sealed[member] = Seals(plan.digest, fake.seal(forgers[member], transcript, ordered))
            federation.perform(VICTIM, federation.tell(VICTIM, delivery(federation, sealed, VICTIM, everyone)))
            federation.compute()
            rows = {
                member: _opened(fake, views[VICTIM], parcel(sealed[VICTIM], member), transcript, member)
                for member, fake in fakes.items()
            }
            secrets = [
                adversary.combine(
                    {member: row[place : place + KEY_BYTES] for member, row in rows.items()}, plan.threshold
                )
                for place in (KEY_BYTES, KEY_BYTES * (1 + plan.steps))
            ]
            opened = open_sum(federation, 0, [VICTIM], {VICTIM: secrets[0]}, {VICTIM: secrets[1]}, shown=views)
            return opened, federation.vectors[0, VICTIM]

        return recovered(attempt)


def _opened(keys: LockstepKeys, sender: Advertisement, seal: Seal, transcript: bytes, receiver: int) -> bytes:
    """What a member sealed for whoever holds these keys."""
    agreed = keyschedule.agree(keys._share_private.reveal(), sender.share_key)
    if keys._kem is None:
        raise Stuck("the keys are gone")
    key = hybrid.seal_key(
        agreed,
        keys._kem.decapsulate(seal.kem),
        transcript=transcript,
        sender=sender.member,
        receiver=receiver,
        ciphertext=seal.kem,
    )
    return ChaCha20Poly1305(key).decrypt(bytes(12), seal.ciphertext, keys._additional(sender.member, receiver))


def alone_among_sybils(federation: Federation) -> tuple[Vector, Vector]:
    """Run a step in which all machines but the victim's are the server's; what it opens, and the truth."""
    with credulous():
        if not federation.set_up() or federation.step() is None:
            raise next(error for member, error in federation.refusals if member == VICTIM)
    sybils = all_but(federation, VICTIM)
    total = federation.reveals[0].total
    known = adversary.ring_sum(federation, (federation.vectors[0, member] for member in sybils))
    return adversary.reduce(federation, total - known), federation.vectors[0, VICTIM]


class SybilAdvertisements(Attack):
    """Every member but the victim is the server itself, in the names of the roster."""

    name = "sybils-in-members-names"
    adversary = "malicious server"
    goal = "Play every other member with keys of its own, so that the victim's input is alone in the sum."
    paper = "Douceur, IPTPS 2002; Pasquini et al., CCS 2022"
    promises = ("P5",)
    defences = SIGNED

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Advertise in every name, signed with another key."""

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences)
            for member in all_but(federation, VICTIM):
                federation.clients[member] = BELIEVES_ALL(
                    charter=federation.charter,
                    roster=federation.roster,
                    course=federation.course,
                    member=member,
                    signer=Forger(federation.signers[member].public),
                    policy=federation.policy,
                    random_bytes=federation.tapes[member],
                )
            return alone_among_sybils(federation)

        return recovered(attempt)


class SybilRoster(Attack):
    """A roster of the server's own making."""

    name = "roster-of-sybils"
    adversary = "malicious server"
    goal = "Hand the victim a roster in which all others are the server's own identities."
    paper = "Douceur, IPTPS 2002"
    promises = ("P5",)
    defences = ("roster-signature",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Name the administrator that clients pin, without its signature."""

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences)  # of its members all but the victim are invented
            pinned = Signer(laboratory.random("administrator").randbytes(KEY_BYTES)).public
            invented = msgspec.structs.replace(federation.roster, administrators=(pinned,))
            file = identity.SignedRoster(invented, pinned, bytes(64))
            accepted = identity.read_roster(msgspec.json.encode(file), pinned)
            if accepted.hash != invented.hash:
                raise Stuck("another roster was read than was written")
            return alone_among_sybils(federation)

        return recovered(attempt)


class OldRoster(Attack):
    """A roster from before a revocation."""

    name = "old-roster"
    adversary = "malicious server with a revoked client"
    goal = "Bring a revoked member back with an older roster, rightly signed."
    paper = "Samuel et al., CCS 2010 (rollback)"
    promises = ("P5",)
    defences = ("roster-serial",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Sign two rosters, revoke in the second, present the first."""

        def attempt() -> bool:
            chance = laboratory.random(self.name)
            administrator = Signer(chance.randbytes(KEY_BYTES))
            names = [f"client-{number}" for number in range(3)] + ["revoked"]
            members = [Member(n, Signer(chance.randbytes(32)).public, chance.randbytes(32)) for n in names]
            server = ServerEntry("tcp://127.0.0.1:5555", chance.randbytes(32))
            signing = (administrator.public,)
            old = sign_roster(Roster("laboratory", 1, server, tuple(members), signing), administrator)
            new = sign_roster(Roster("laboratory", 2, server, tuple(members[:3]), signing), administrator)
            known = identity.read_roster(new, administrator.public).serial
            accepted = identity.read_roster(old, administrator.public, least_serial=known)
            return any(member.name == "revoked" for member in accepted.members)

        return counted({"the roster before the revocation": attempt}, what="old rosters")


class SplitView(Attack):
    """Two blocks never hear of each other."""

    name = "split-view"
    adversary = "malicious server"
    goal = "Show clients different sets of members, so that they use masks and shares of different groups."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P4",)
    defences = ("transcript-binding", "chain-binding")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Hide the first block of four and the last from each other, rebuild all self masks, and add everything up."""
        federation = resilient(laboratory, defences, members=12, colluders=1, blocks=even_blocks(12, 1))
        blocks, everyone = federation.charter.blocks, federation.everybody
        first, last = blocks[0], blocks[-1]
        views = {
            one: tuple(
                other
                for other in everyone
                if not ((one in first and other in last) or (one in last and other in first))
            )
            for one in everyone
        }

        def attempt() -> tuple[Vector, Vector]:
            items = advertised(federation)
            sealed = sealed_by(federation, {one: {other: items[other] for other in views[one]} for one in everyone})
            for one in everyone:
                federation.perform(one, federation.tell(one, delivery(federation, sealed, one, views[one])))
            federation.compute()
            shares: dict[int, dict[int, bytes]] = {one: {} for one in everyone}
            for one in everyone:
                answer = announce(federation, one, views[one])
                for whose, share in adversary.shares_of(answer, views[one]).items():
                    shares[whose][one] = share
            total = adversary.ring_sum(federation, (adversary.masked_input(federation, 0, one) for one in everyone))
            for one in everyone:
                secret = adversary.combine(shares[one], federation.plan.threshold)
                chain = adversary.chain_of(federation, 0, one)
                adversary.take_off_self_mask(federation, total, secret, 0, chain)
            return adversary.reduce(federation, total), federation.plain_sum(0, everyone)

        return recovered(attempt, whose="the sum over clients with different views")


class SmallCohort(Attack):
    """An epoch of a few, in lockstep."""

    name = "small-cohort"
    adversary = "malicious server"
    goal = "Run an epoch of three members only, so that each input hides behind fewer others than was agreed."
    promises = ("P2",)
    defences = ("summed-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Invite three members, set them up by hand, and add what they send."""
        chosen = (0, 1, 2)
        laboratory.need(laboratory.cohort.clients > len(chosen), "all clients are three")

        def attempt() -> tuple[Vector, Vector]:
            federation = lockstep(laboratory, defences)
            offer = federation.offer(cohort=chosen)
            items = {member: said(federation.tell(member, Invitation(offer))) for member in chosen}
            federation._plan = federation.clients[VICTIM].plan
            set_up_by_hand(federation, chosen, items)
            federation.compute()
            opened = adversary.ring_sum(federation, (adversary.masked_input(federation, 0, one) for one in chosen))
            return opened, federation.plain_sum(0, chosen)

        return recovered(attempt, whose="the sum over three clients")


# -- keys ---------------------------------------------


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]  # fmt: skip


def taken(laboratory: Laboratory, defences: Defences, changed: Callable[[dict[int, Any]], dict[str, bytes]]) -> bool:
    """Whether the victim takes a colluder's advertisement with these changes, rightly signed."""
    federation = resilient(laboratory, defences)
    items = advertised(federation)
    items[COLLUDER] = resigned(federation, items[COLLUDER], **changed(items))
    return isinstance(said(federation.tell(VICTIM, shown(federation, items))), Seals)


class LowOrderKeys(Attack):
    """Public keys with which every secret is zero."""

    name = "low-order-keys"
    adversary = "colluding client"
    goal = "Advertise a point of low order, so that the masks shared with it are known to everybody on the network."
    paper = "RFC 7748, section 6.1; Bernstein, PKC 2006"
    promises = ("P5", "P7")
    defences = ("low-order-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Try all seven points as the share key and as a mask key."""

        def attempt(low: bytes, field: str, standing: Defences) -> bool:
            def changed(items: dict[int, Any]) -> dict[str, bytes]:
                keys = items[COLLUDER].mask_keys
                return {field: low if field == "share_key" else keys[:32] + low + keys[64:]}

            return taken(laboratory, standing, changed)

        tries = {
            f"point {number} as {field}": Try(partial(attempt, low, field), self.defences)
            for number, low in enumerate(LOW_ORDER)
            for field in ("share_key", "mask_keys")
        }
        return counted(tries, what="points of low order", defences=defences)


class DuplicatedKeys(Attack):
    """A public key that occurs twice."""

    name = "duplicated-keys"
    adversary = "colluding client"
    goal = "Advertise another member's public key, or one key for all steps, so that secrets are shared or repeated."
    promises = ("P5", "P12")
    defences = ("_rule_distinct_keys",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Six ways to repeat a key, rightly signed."""
        ways: dict[str, Callable[[dict[int, Any]], dict[str, bytes]]] = {
            "another's mask key": lambda items: {
                "mask_keys": items[OTHER].mask_keys[:32] + items[COLLUDER].mask_keys[32:]
            },
            "another's mask key, written otherwise": lambda items: {
                "mask_keys": items[OTHER].mask_keys[:31]
                + bytes([items[OTHER].mask_keys[31] ^ 0x80])
                + items[COLLUDER].mask_keys[32:]
            },  # X25519 does not read the top bit
            "another's share key": lambda items: {"share_key": items[OTHER].share_key},
            "another's KEM key": lambda items: {"kem_key": items[OTHER].kem_key},
            "another's commitment": lambda items: {"commitment": items[OTHER].commitment},
            "the own key in every step": lambda items: {
                "mask_keys": items[COLLUDER].mask_keys[:32] * (len(items[COLLUDER].mask_keys) // 32)
            },
        }
        tries = {
            how: Try(lambda standing, changed=changed: taken(laboratory, standing, changed), self.defences)  # type: ignore[misc]
            for how, changed in ways.items()
        }
        return counted(tries, what="repeated keys", defences=defences)


class ReplayedAdvertisement(Attack):
    """Keys of an earlier epoch."""

    name = "replayed-advertisement"
    adversary = "malicious server"
    goal = "Show a member's rightly signed keys of an earlier epoch, whose secrets may be known by now."
    promises = ("P3", "P5")
    defences = ("advertisement-context", "_rule_signed_advertisement")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """As it was, and relabelled for the new plan."""

        def attempt(relabelled: bool, standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            old = advertised(federation)[COLLUDER]
            items = {**advertised(federation, federation.offer(epoch=1)), COLLUDER: old}
            if relabelled:
                items[COLLUDER] = msgspec.structs.replace(old, plan=federation.plan.digest)
            return isinstance(said(federation.tell(VICTIM, shown(federation, items))), Seals)

        tries = {
            "an earlier epoch's as it was": Try(partial(attempt, False), ("advertisement-context",)),
            "one relabelled for this epoch": Try(partial(attempt, True), ("_rule_signed_advertisement",)),
        }
        return counted(tries, what="old advertisements", defences=defences)


# -- seals ---------------------------------------------


def _altered_seals(how: str, federation: Federation, earlier: Federation) -> dict[int, Seal]:
    """What a server hands the victim in place of what was sealed for it."""
    honest = {item.member: item for item in delivered(federation, VICTIM).items}
    first, second = honest[COLLUDER], honest[OTHER]
    replace = msgspec.structs.replace
    if how == "a bit of the ciphertext flipped":
        changed = replace(first, ciphertext=bytes([first.ciphertext[0] ^ 1]) + first.ciphertext[1:])
    elif how == "a bit of the KEM ciphertext flipped":
        changed = replace(first, kem=bytes([first.kem[0] ^ 1]) + first.kem[1:])
    elif how == "two senders' KEM ciphertexts swapped":
        honest[OTHER] = replace(second, kem=first.kem)
        changed = replace(first, kem=second.kem)
    elif how == "the server's own KEM ciphertext":
        changed = replace(first, kem=hybrid.encapsulate(adversary.advertisements(federation)[VICTIM].kem_key)[1])
    elif how == "two senders swapped":
        honest[OTHER] = replace(first, member=OTHER)
        changed = replace(second, member=COLLUDER)
    elif how == "meant for another":
        changed = parcel(delivered(federation, OTHER), COLLUDER)
    elif how == "sent back":
        own = next(one for one in reversed(federation.sent) if one.kind is Seals and one.member == VICTIM).message
        changed = parcel(own, COLLUDER)  # type: ignore[arg-type]
    else:
        changed = parcel(delivered(earlier, VICTIM), COLLUDER)
    return {**honest, COLLUDER: changed}


class AlteredSeals(Attack):
    """Seals that are changed on their way through the server."""

    name = "altered-seals"
    adversary = "malicious server, or whoever sits on its line"
    goal = "Alter, swap, reflect or replay what it routes: put own secrets in, or have honest members accuse others."
    promises = ("P8", "P10")
    defences = ("_rule_signed_seal",)
    ways = (
        "a bit of the ciphertext flipped",
        "a bit of the KEM ciphertext flipped",
        "two senders' KEM ciphertexts swapped",
        "the server's own KEM ciphertext",
        "two senders swapped",
        "meant for another",
        "sent back",
        "of an earlier epoch",
    )

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Eight deliveries that are not what was sealed; the victim must stay where it was, and accuse nobody."""

        def attempt(how: str, standing: Defences) -> bool:
            federation = resilient(laboratory, standing)
            earlier = federation
            if how == "of an earlier epoch":
                earlier = resilient(laboratory, standing)
                earlier.set_up()
                federation.server._next_epoch = 1
            federation.set_up(lost={(VICTIM, SealDelivery)})
            changed = _altered_seals(how, federation, earlier)
            items = tuple(changed[member] for member in sorted(changed))
            message = SealDelivery(federation.plan.digest, items)
            try:
                effects = federation.tell(VICTIM, message)
            except ProtocolError:
                if federation.clients[VICTIM].state is not State.SEALED:
                    return True
                raise
            return isinstance(effects[0].message, Complaint)

        tries = {
            how: Try(lambda standing, how=how: attempt(how, standing), self.defences)  # type: ignore[misc]
            for how in self.ways
        }
        return counted(tries, what="altered deliveries", defences=defences)


class GarbledSeals(Attack):
    """A member that seals garbage for another, epoch after epoch, rightly signed."""

    name = "garbled-seals"
    adversary = "malicious client"
    goal = "Take an honest member out of every epoch, so that the federation never gets anywhere."
    promises = ("P8",)
    defences = ("barred-pairs",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Four epochs in which the liar seals garbage for the victim, whenever both take part."""
        federation = resilient(laboratory, defences)
        liar = federation.everybody[-1]
        failed = 0
        for _ in range(4):
            if not set_up_with_liar(federation, liar, (VICTIM,)):
                failed += 1
                continue
            while federation.server.step is not None:
                federation.step()
            federation.finish()
        return Evidence(
            measure="epochs spoilt after the first, of 3",
            value=float(max(0, failed - 1)),
            success=0.0,
            learned=f"{failed} of 4 epochs spoilt",
        )


class ChosenStart(Attack):
    """A colluder that changes its value once it has seen all others."""

    name = "chosen-start"
    adversary = "malicious server with a colluding client"
    goal = "Choose where the trajectory starts, so that clients are asked about points of the server's choice."
    promises = ("P4",)
    defences = ("value-commitments",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Hold the colluder's seals back, and try values until the start seed begins with a zero byte."""

        def attempt() -> bool:
            federation = lockstep(laboratory, defences)
            everyone = federation.everybody
            items = advertised(federation)
            sealed = sealed_by(federation, dict.fromkeys(everyone, items))
            epoch = federation.clients[COLLUDER]._epoch
            if epoch is None:
                raise Stuck("the colluder is in no epoch")
            transcript = adversary.transcript_of(federation, items)
            values = {
                one: _opened(epoch.keys, items[one], parcel(sealed[one], COLLUDER), transcript, COLLUDER)[:KEY_BYTES]
                for one in everyone
                if one != COLLUDER
            }
            chance = laboratory.random(self.name)
            while True:
                values[COLLUDER] = chance.randbytes(KEY_BYTES)
                shares = b"".join(hybrid.start_share(values[one]) for one in everyone)
                if hybrid.start_seed(transcript, everyone, shares)[0] == 0:
                    break
            epoch.keys._value = Secret(values[COLLUDER])
            sealed[COLLUDER] = Seals(
                federation.plan.digest, epoch.keys.seal(federation.signers[COLLUDER], transcript, items)
            )
            federation.tell(VICTIM, delivery(federation, sealed, VICTIM, everyone))
            begun = federation.clients[VICTIM]._epoch
            return begun is not None and begun.public is not None and begun.public.start == shares

        return counted({"a start seed with a first byte of zero": attempt}, what="chosen starts")


# -- charters and policies ---------------------------------------------


# -- offers and restarts ---------------------------------------------


SWITCHES: Mapping[str, Switch] = {
    "barred-pairs": Switch(
        "Of a pair in which one cannot open what the other sealed, one stays away.",
        lambda: patch.object(ServerProtocol, "_barred", lambda self, present: set()),
    ),
}

ATTACKS: tuple[Attack, ...] = (
    SubstitutedKeys(),
    SybilAdvertisements(),
    SybilRoster(),
    OldRoster(),
    SplitView(),
    SmallCohort(),
    LowOrderKeys(),
    DuplicatedKeys(),
    ReplayedAdvertisement(),
    AlteredSeals(),
    GarbledSeals(),
    ChosenStart(),
)
