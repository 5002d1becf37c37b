"""A server that cheats before the first step: keys, members, views, seals, charters, rosters, offers, restarts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import hybrid, identity, keyschedule
from codream_protocols.charter import Charter, Offer, Policy, Predecessor, even_blocks
from codream_protocols.client import State
from codream_protocols.errors import ProtocolError
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.lockstep import LockstepKeys, seal_statement
from codream_protocols.masks import SUITES
from codream_protocols.messages import Advertisement, Complaint, Invitation, MaskedInput, Seal, SealDelivery, Seals
from codream_protocols.resilient import make_keys
from codream_protocols.secret import Secret
from codream_protocols.server import ServerProtocol
from codream_protocols.specs import Block, VectorSpec
from secure_codream.simulation.toy_course import UPDATE_SPEC, LaboratoryCourse
from secure_codream.simulation.wire import Federation, Stuck
from secure_codream.threats.attacks.dropouts import VICTIM, all_but, in_mode, lockstep, resilient
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
from secure_codream.threats.laboratory.switches import SWITCHES as COMMON
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
            file = identity.SignedRoster(federation.roster, pinned, bytes(64))
            accepted = identity.read_roster(msgspec.json.encode(file), pinned)
            if accepted.hash != federation.roster.hash:
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
            old = sign_roster(Roster("laboratory", 1, server, tuple(members)), administrator)
            new = sign_roster(Roster("laboratory", 2, server, tuple(members[:3])), administrator)
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


def reseal(federation: Federation, message: Any, sender: int, receiver: int) -> Seals:
    """A lying member's seals: the ciphertext of the one for `receiver` is garbage, and rightly signed."""
    transcript, seals = adversary.transcript_of(federation), []
    for seal in message.items:
        if seal.member == receiver:
            garbage = bytes([seal.ciphertext[0] ^ 1]) + seal.ciphertext[1:]
            statement = seal_statement(transcript, sender, receiver, seal.kem, garbage)
            seal = Seal(receiver, seal.kem, garbage, federation.signers[sender].sign("seal", *statement))
        seals.append(seal)
    return Seals(message.plan, tuple(seals))


def set_up_with_liar(federation: Federation, sender: int, receivers: tuple[int, ...]) -> bool:
    """A set-up in which a member seals signed garbage for chosen others; whether it went through."""
    federation.hello()
    federation.drain()
    chosen = federation.server.cohort()
    if not chosen:
        return False
    federation.emit(federation.server.open_epoch(chosen))
    federation.drain(hold=(Seals,))
    for item in [item for item in federation.wire if item.kind is Seals]:
        message = item.message
        if item.member == sender:
            for receiver in set(receivers) & set(chosen):
                message = reseal(federation, message, sender, receiver)
        federation.wire.remove(item)
        federation.emit(federation.server.receive(item.member, message))  # type: ignore[arg-type]
    federation.drain(hold=(MaskedInput,))
    return federation.server.step is not None


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


class CharterBelowPolicy(Attack):
    """Charters that ask for more, or protect less, than the client's own policy allows."""

    name = "charter-below-policy"
    adversary = "malicious server with a malicious administrator"
    goal = "Have a client take part under settings that its policy rules out."
    promises = ("P6",)
    defences = ("_rule_policy",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One charter that is just within the policy, which is then tightened by each of its limits."""
        (other,) = set(SUITES) - {"aes-256-ctr"}
        within: dict[str, Any] = {
            "least_cohort": 9,
            "least_survivors": 4,
            "colluders": 2,
            "modes": ("resilient",),
            "suites": ("aes-256-ctr",),
            "most_steps": 3,
            "most_coordinates": 20,
            "most_value_bits": 16,
            "losses": True,
        }
        beyond: dict[str, dict[str, Any]] = {
            "fewer members": {"least_cohort": 10},
            "fewer survivors": {"least_survivors": 5},
            "fewer colluders": {"colluders": 3},
            "another mode": {"modes": ("lockstep",)},
            "another mask suite": {"suites": (other,)},
            "more steps": {"most_steps": 2},
            "more coordinates": {"most_coordinates": 19},
            "finer values": {"most_value_bits": 15},
            "parts of blocks": {"losses": False},
        }

        def attempt(changed: Mapping[str, Any], standing: Defences) -> bool:
            federation = laboratory.federation(
                standing,
                members=9,
                mode="resilient",
                colluders=2,
                least_survivors=4,
                value_bits=16,
                suite="aes-256-ctr",
                losses="allow",
                blocks=even_blocks(9, 2),
                policy=Policy(**{**within, **changed}),
            )
            return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        if not attempt({}, Defences()):
            raise Stuck("a charter within the policy was refused")
        tries = {
            how: Try(lambda standing, what=what: attempt(what, standing), self.defences)  # type: ignore[misc]
            for how, what in beyond.items()
        }
        return counted(tries, what="charters beyond the policy", defences=defences)


def noised(multiplier: float, shares: int) -> tuple[VectorSpec, ...]:
    """Vectors that carry noise, of which `shares` clients' make up the whole."""
    return (UPDATE_SPEC.with_noise(1.0, multiplier, shares),) if multiplier else (UPDATE_SPEC,)


class LessNoise(Attack):
    """Sums that would carry less noise than the client demands."""

    name = "less-noise-than-demanded"
    adversary = "malicious server with a malicious administrator"
    goal = (
        "Have a client take part in sums with less noise than its policy demands, against all survivors or colluders."
    )
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15", "P6")
    defences = ("_rule_policy",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """No noise, half of it, and shares that make up the whole only if nobody drops out and nobody colludes."""
        cohort = laboratory.cohort
        honest = resilient(laboratory, Defences()).charter.least_honest

        def attempt(multiplier: float, shares: int, standing: Defences) -> bool:
            policy = Policy(least_noise=1.0)
            federation = resilient(laboratory, standing, policy=policy, specs=noised(multiplier, shares))
            return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        if not attempt(1.0, honest, Defences()):
            raise Stuck("the noise that is demanded was refused")
        tries = {
            "no noise": Try(partial(attempt, 0.0, honest), self.defences),
            "half the noise": Try(partial(attempt, 0.5, honest), self.defences),
            "noise that counts on everybody": Try(partial(attempt, 1.0, cohort.clients), self.defences),
        }
        return counted(tries, what="courses with too little noise", defences=defences)


class UnsafeCharter(Attack):
    """Charters under which a promise fails, whatever a policy says."""

    name = "unsafe-charter"
    adversary = "malicious server with a malicious administrator"
    goal = "Agree on blocks or numbers with which c colluders and a few sums give one client's input."
    paper = "So et al., AAAI 2023"
    promises = ("P1", "P2", "P9")
    defences = ("charter-check",)
    ways: Mapping[str, Mapping[str, Any]] = {
        "blocks of c + 1": {"members": 6, "mode": "resilient", "blocks": ((0, 1), (2, 3), (4, 5))},
        "blocks that overlap": {"members": 6, "mode": "resilient", "blocks": ((0, 1, 2), (2, 3, 4, 5))},
        "a member in no block": {"members": 7, "mode": "resilient", "blocks": ((0, 1, 2), (3, 4, 5))},
        "fewer survivors than c + 2": {"members": 9, "mode": "lockstep", "colluders": 2, "least_survivors": 3},
        "more survivors than members": {"members": 3, "mode": "lockstep", "least_survivors": 4},
        "a lockstep of too many": {"members": 65, "mode": "lockstep"},
    }

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Make a client with each, and invite it."""

        def attempt(options: Mapping[str, Any], standing: Defences) -> bool:
            with patch.object(Charter, "check_summed", lambda self, members: None):  # the charter itself is on trial
                usual = {"colluders": 1, "least_survivors": 3, "blocks": None}
                federation = laboratory.federation(standing, **{**usual, **options})
                return isinstance(adversary.invite(federation, VICTIM), Advertisement)

        tries = {
            how: Try(lambda standing, options=options: attempt(options, standing), self.defences)  # type: ignore[misc]
            for how, options in self.ways.items()
        }
        return counted(tries, what="unsafe charters", defences=defences)


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "roster": {"roster": bytes(31) + b"r"},
    "members": {"members": 1},
    "settings": {"settings": bytes(31) + b"s"},
    "blocks": {"blocks": True},
    "predecessor": {"predecessor": Predecessor(bytes(32), bytes(32), 0)},
    "aggregation.mode": {"mode": "lockstep"},
    "aggregation.colluders": {"colluders": 1},
    "aggregation.least_survivors": {"least_survivors": 4},
    "aggregation.value_bits": {"value_bits": 24},
    "aggregation.suite": {"suite": "chacha20"},
    "aggregation.losses": {"losses": "allow"},
    "aggregation.attempts": {"attempts": 999},
    "course: a larger clip": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 20, 2.0),)),))},
    "course: more coordinates": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 21, 1.0),)),))},
    "course: another task": {"course": LaboratoryCourse((VectorSpec("gradient", (Block("dream", 20, 1.0),)),))},
    "course: another block": {"course": LaboratoryCourse((VectorSpec("update", (Block("image", 20, 1.0),)),))},
    "course: counts": {"course": LaboratoryCourse((VectorSpec("update", (Block("dream", 20, 1.0, "count"),)),))},
    "course: noise": {"course": LaboratoryCourse(noised(1.0, 3))},
    "course: more steps": {"course": LaboratoryCourse(steps=4)},
    "course: another start": {"course": LaboratoryCourse(), "shifted": True},
}
"""What a server could wish otherwise: every field of the charter, and what a course asks."""


class _Shifted(LaboratoryCourse):
    """A course that starts elsewhere."""

    def start(self, seed: bytes, certified: int, last: Any) -> Any:
        """See `Course`."""
        return {"state": super().start(seed, certified, last)["state"] + 1.0}


def changed_world(federation: Federation, change: Mapping[str, Any]) -> tuple[Charter, Any, Roster]:
    """The charter, the course and the roster of a server that has changed this."""
    charter, course, roster = federation.charter, federation.course, federation.roster
    replace = msgspec.structs.replace
    aggregation = {name: value for name, value in change.items() if hasattr(charter.aggregation, name)}
    charter = replace(charter, aggregation=replace(charter.aggregation, **aggregation))
    if "roster" in change:
        roster = replace(roster, serial=2)
    if "members" in change:
        roster = replace(roster, members=roster.members[:-1])
        charter = replace(charter, members=len(roster.members), blocks=even_blocks(len(roster.members), 2))
    if "settings" in change:
        charter = replace(charter, settings=change["settings"])
    if "blocks" in change:
        charter = replace(charter, blocks=(charter.everybody,))
    if "predecessor" in change:
        charter = replace(charter, predecessor=change["predecessor"])
    return (
        replace(charter, roster=roster.hash),
        _Shifted() if "shifted" in change else change.get("course", course),
        roster,
    )


class ChangedCharter(Attack):
    """A server with another charter, or another course, than was agreed."""

    name = "changed-charter"
    adversary = "malicious server"
    goal = "Choose what decides what a client reveals: who is summed, how finely, behind how many, and what is asked."
    promises = ("P4", "P6")
    defences = ("own-charter",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Change every field in turn at a server that lets any client in; a sum must never open."""

        def attempt(change: Mapping[str, Any], standing: Defences) -> bool:
            federation = laboratory.federation(
                standing,
                members=9,
                mode="resilient",
                colluders=2,
                least_survivors=5,
                blocks=even_blocks(9, 2),
                value_bits=16,
                suite="aes-256-ctr",
            )
            charter, course, roster = changed_world(federation, change)
            federation.server = ServerProtocol(charter, roster, course)
            if not standing.stands("own-charter"):
                federation.charter, federation.roster, federation.course = charter, roster, course
                federation.courses = [course] * charter.members
                federation.clients = [
                    federation._client(member, charter, federation.diaries[member].memory)
                    for member in charter.everybody
                ]
            with COMMON["charter-at-hello"].off():
                federation.hello(charter.everybody)
            federation.drain()
            federation.emit(federation.server.open_epoch(charter.everybody))
            federation.drain()
            federation.compute()
            federation.drain()
            return bool(federation.reveals)

        tries = {
            field: Try(lambda standing, change=change: attempt(change, standing), self.defences)  # type: ignore[misc]
            for field, change in CHANGES.items()
        }
        return counted(tries, what="changed settings", defences=defences)


# -- offers and restarts ---------------------------------------------


def _answers(federation: Federation, offer: Offer) -> bool:
    answer = federation.tell(VICTIM, Invitation(offer))
    return isinstance(said(answer), Advertisement)


def _old_epoch(federation: Federation) -> bool:
    _answers(federation, federation.offer(epoch=4))
    return _answers(federation, federation.offer(epoch=3))


def _far_epoch(federation: Federation) -> bool:
    return _answers(federation, federation.offer(epoch=1 << 52))


def _earlier_head(federation: Federation) -> bool:
    first = federation.server.head
    federation.run()
    return _answers(federation, federation.offer(head=first))


def _after_the_vote(federation: Federation) -> bool:
    federation.voted()
    return _answers(federation, federation.offer())


def _too_often(federation: Federation) -> bool:
    return all(_answers(federation, federation.offer(epoch=epoch)) for epoch in range(4))


def _after_wrong_sums(federation: Federation) -> bool:
    federation.masked()
    item = federation.published(0)
    message, frame = adversary.altered(federation, item, {0: 1})
    federation.tell(VICTIM, message, (frame,))
    return _answers(federation, federation.offer())


def _beyond_the_budget(federation: Federation) -> bool:
    federation.run()
    return _answers(federation, federation.offer())


OFFERS: Mapping[str, tuple[Callable[[Federation], bool], tuple[str, ...], dict[str, Any]]] = {
    "an epoch before one that was joined": (_old_epoch, ("_rule_fresh_epoch",), {}),
    "an epoch that uses up all numbers": (_far_epoch, ("_rule_fresh_epoch",), {}),
    "an earlier history, asked again": (_earlier_head, ("_rule_same_head",), {}),
    "another epoch after a vote": (_after_the_vote, ("_rule_bound_by_vote",), {}),
    "one start more than the charter permits": (_too_often, ("_rule_attempts",), {"attempts": 3}),
    "going on after a wrong sum": (_after_wrong_sums, ("_rule_wrong_sums",), {"policy": Policy(most_wrong_sums=0)}),
    "more steps than the policy's total": (
        _beyond_the_budget,
        ("_rule_budget",),
        {"policy": Policy(most_total_steps=5)},
    ),
}


class OffersThatDoNotFit(Attack):
    """Offers that do not fit where a client stands."""

    name = "offers-that-do-not-fit"
    adversary = "malicious server"
    goal = "Have a client begin an epoch that is old, elsewhere, after the end, or one more than was agreed."
    promises = ("P3", "P6")
    defences = tuple(dict.fromkeys(rule for _, rules, _ in OFFERS.values() for rule in rules))

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Each offer, against a client that has lived through what it needs."""

        def attempt(say: Callable[[Federation], bool], options: dict[str, Any], standing: Defences) -> bool:
            return say(lockstep(laboratory, standing, **options))

        tries = {how: Try(partial(attempt, say, options), rules) for how, (say, rules, options) in OFFERS.items()}
        return counted(tries, what="offers that do not fit", defences=defences)


class StrangeCohorts(Attack):
    """Cohorts that the charter does not let be summed."""

    name = "strange-cohorts"
    adversary = "malicious server"
    goal = "Invite a part of a block, too few, or in lockstep not everybody: sums over these separate members."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("summed-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Offer each to the victim."""

        def attempt(mode: str, missing: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing)
            everybody = federation.everybody
            return _answers(federation, federation.offer(cohort=everybody[: len(everybody) - missing]))

        tries = {
            "in lockstep, everybody but one": Try(partial(attempt, "lockstep", 1), self.defences),
            "everybody but one": Try(partial(attempt, "resilient", 1), self.defences),
            "everybody but two": Try(partial(attempt, "resilient", 2), self.defences),
        }
        return counted(tries, what="strange cohorts", defences=defences)


class PartsShown(Attack):
    """Fewer members than were invited, though all have advertised."""

    name = "parts-of-the-cohort-shown"
    adversary = "malicious server"
    goal = "Leave members out of an epoch so that what is summed is a part of a block, or in lockstep not everybody."
    paper = "So et al., AAAI 2023"
    promises = ("P2",)
    defences = ("_rule_members",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Show the victim some of the advertisements, and see whether it seals for them."""

        def attempt(mode: str, missing: int, standing: Defences) -> bool:
            federation = in_mode(mode, laboratory, standing)
            items = advertised(federation)
            chosen = federation.everybody[: len(items) - missing]
            answer = federation.tell(VICTIM, shown(federation, {one: items[one] for one in chosen}))
            return isinstance(said(answer), Seals)

        tries = {
            "in lockstep, everybody but one": Try(partial(attempt, "lockstep", 1), self.defences),
            "in lockstep, everybody but three": Try(partial(attempt, "lockstep", 3), self.defences),
            "everybody but one of a block": Try(partial(attempt, "resilient", 1), self.defences),
        }
        return counted(tries, what="parts of the cohort", defences=defences)


class RestartedClient(Attack):
    """Clients that were killed and started again."""

    name = "restarted-client"
    adversary = "malicious server that can make clients crash"
    goal = "Have a client forget what it joined or voted for, and do it once more."
    promises = ("P3", "P6")
    defences = ("memory",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Kill the victim at several points, and ask again."""

        def again(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            federation.set_up()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.plan.offer)

        def after_its_vote(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing).voted()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer())

        def attempts(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing, attempts=2)
            for epoch in range(3):
                federation.restart(VICTIM, remembers=standing.stands("memory"))
                _answers(federation, federation.offer(epoch=epoch))
            return True

        def budget(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing, policy=Policy(most_total_steps=4))
            federation.set_up()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            for _ in range(2):
                federation.set_up()
                federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer(epoch=3))

        def rolled_back(standing: Defences) -> bool:
            federation = lockstep(laboratory, standing)
            first = federation.server.head
            federation.run()
            federation.restart(VICTIM, remembers=standing.stands("memory"))
            return _answers(federation, federation.offer(head=first))

        ways = {
            "the plan that it had joined": again,
            "another epoch after its vote": after_its_vote,
            "one start more than the charter permits": attempts,
            "more steps than the policy's total": budget,
            "a history that is over": rolled_back,
        }
        tries = {how: Try(attempt, self.defences) for how, attempt in ways.items()}
        return counted(tries, what="questions to a client that was started again", defences=defences)


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
    StrangeCohorts(),
    PartsShown(),
    LowOrderKeys(),
    DuplicatedKeys(),
    ReplayedAdvertisement(),
    AlteredSeals(),
    GarbledSeals(),
    ChosenStart(),
    ChangedCharter(),
    CharterBelowPolicy(),
    LessNoise(),
    UnsafeCharter(),
    OffersThatDoNotFit(),
    RestartedClient(),
)
