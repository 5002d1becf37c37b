"""A server that cheats before the first step: keys, members, views, shares, plans, rosters, sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from codream_protocols import identity, keyschedule
from codream_protocols.client import State
from codream_protocols.identity import Member, Roster, ServerEntry, Signer, sign_roster
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.masks import SUITES
from codream_protocols.messages import (
    Advertisement,
    Broadcast,
    Farewell,
    MaskedInput,
    PlanOffer,
    SealedShare,
    ShareDelivery,
    Shares,
)
from codream_protocols.plan import Block, Policy, VectorSpec
from codream_protocols.server import ServerEpoch
from secure_codream.threats import adversary
from secure_codream.threats.adversary import advertised, announce, open_sum, rebuild, said, shown
from secure_codream.threats.attack import Attack, Defences, Evidence
from secure_codream.threats.dropouts import VICTIM, all_but
from secure_codream.threats.evidence import Vector, counted, recovered
from secure_codream.threats.federation import STATE, Federation, Stuck, packet
from secure_codream.threats.laboratory import Laboratory
from secure_codream.threats.switches import weakened

COLLUDER, OTHER = 1, 2
FORGED = Defences().without("_rule_signed_advertisement")


def begin(federation: Federation, members: tuple[int, ...]) -> Broadcast:
    """Broadcast the usual state of step 0 to these members, who mask their inputs."""
    plan = federation.plan
    message = Broadcast(plan.digest, 0, tuple(block.clip for block in plan.spec(0).blocks), (STATE.shape,))
    for member in members:
        federation.deliver(packet(member, message, (STATE.tobytes(),), to_server=False))
    return message


class SubstitutedKeys(Attack):
    """A man in the middle of the share transport."""

    name = "substituted-keys"
    adversary = "malicious server"
    goal = "Swap the other members' share transport keys for its own, read the shares, and unmask the victim's input."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P5",)
    defences = ("_rule_signed_advertisement",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Show the victim honest advertisements with other share keys; open and answer its shares."""
        laboratory.need(
            laboratory.cohort.threshold < laboratory.cohort.clients,
            "shares of everybody, the victim too, rebuild a secret",
        )

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            plan, chance = federation.plan, laboratory.random(self.name)
            items = advertised(federation)
            private = {member: chance.randbytes(KEY_BYTES) for member in all_but(federation, VICTIM)}
            forged = {
                member: msgspec.structs.replace(items[member], share_key=keyschedule.public_key(secret))
                for member, secret in private.items()
            }
            views = {VICTIM: items[VICTIM], **forged}
            sealed = said(federation.tell(VICTIM, shown(federation, views)))

            def channel(member: int, sender: int, receiver: int) -> tuple[ChaCha20Poly1305, bytes]:
                key = keyschedule.share_transport_key(
                    private[member],
                    items[VICTIM].share_key,
                    plan=plan.digest,
                    sender=sender,
                    receiver=receiver,
                    advertisements=(views[sender].digest, views[receiver].digest),
                )
                return ChaCha20Poly1305(key), keyschedule.labelled("share", plan.digest, bytes([sender, receiver]))

            rows, parcels = {}, []
            for member in private:
                cipher, additional = channel(member, VICTIM, member)
                shares = cipher.decrypt(bytes(12), adversary.parcel(sealed, member), additional)
                rows[member] = np.frombuffer(shares, dtype=np.uint8).reshape(-1, KEY_BYTES)
                cipher, additional = channel(member, member, VICTIM)
                parcels.append(SealedShare(member, cipher.encrypt(bytes(12), bytes(rows[member].size), additional)))
            federation.tell(VICTIM, ShareDelivery(plan.digest, tuple(sorted(views)), tuple(parcels)))
            begin(federation, (VICTIM,))
            secrets = [
                adversary.combine({member: row[place].tobytes() for member, row in rows.items()}, plan.threshold)
                for place in (0, plan.steps)
            ]
            opened = open_sum(federation, 0, [VICTIM], {VICTIM: secrets[0]}, {VICTIM: secrets[1]}, shown=views)
            return opened, federation.vectors[0, VICTIM]

        return recovered(attempt)


def alone_among_sybils(federation: Federation) -> tuple[Vector, Vector]:
    """Set up and mask with machines of which all but the victim's are the server's; what it opens, and the truth."""
    items = advertised(federation)
    everyone = all_but(federation)
    sealed = adversary.sealed_by(federation, dict.fromkeys(everyone, items))
    for member in everyone:
        federation.tell(member, adversary.delivery(federation, sealed, member, everyone))
    confessed = {member: adversary.confession(federation, member, 0) for member in everyone if member != VICTIM}
    secrets = [
        adversary.combine(
            {member: kinds[kind][VICTIM] for member, kinds in confessed.items()}, federation.plan.threshold
        )
        for kind in (0, 1)
    ]
    begin(federation, (VICTIM,))
    opened = open_sum(federation, 0, [VICTIM], {VICTIM: secrets[0]}, {VICTIM: secrets[1]}, shown=items)
    return opened, federation.vectors[0, VICTIM]


class SybilAdvertisements(Attack):
    """Every member but the victim is the server itself, in the names of the roster."""

    name = "sybils-in-members-names"
    adversary = "malicious server"
    goal = "Play every other member with keys of its own, so that the victim's input is alone in the sum."
    paper = "Douceur, IPTPS 2002; Pasquini et al., CCS 2022"
    promises = ("P5",)
    defences = ("_rule_signed_advertisement",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Advertise in every name, signed with another key."""
        laboratory.need(
            laboratory.cohort.threshold < laboratory.cohort.clients,
            "shares of everybody, the victim too, rebuild a secret",
        )

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            for member in all_but(federation, VICTIM):
                federation.clients[member] = weakened(FORGED)(
                    member=member,
                    signer=adversary.Forger(federation.signers[member].public),
                    roster=federation.roster,
                    policy=federation.policy,
                    random_bytes=laboratory.random(f"{self.name} {member}").randbytes,
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
        laboratory.need(
            laboratory.cohort.threshold < laboratory.cohort.clients,
            "shares of everybody, the victim too, rebuild a secret",
        )

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)  # of its members all but the victim are invented
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
    """One client never hears of another."""

    name = "split-view"
    adversary = "malicious server"
    goal = "Show clients different sets of members, so that they use masks and shares of different groups."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P4",)
    defences = ("transcript-binding",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Hide the first and the last member from each other, rebuild all self masks, and add everything up."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody can be hidden from anybody")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            everyone = all_but(federation)
            last = everyone[-1]
            members = dict.fromkeys(everyone[1:-1], everyone)
            members |= {VICTIM: all_but(federation, last), last: all_but(federation, VICTIM)}
            items = advertised(federation)
            seen = {**members, VICTIM: everyone}
            sealed = adversary.sealed_by(
                federation, {one: {other: items[other] for other in seen[one]} for one in everyone}
            )
            for one in everyone:
                federation.tell(one, adversary.delivery(federation, sealed, one, members[one]))
            begin(federation, everyone)
            shares: dict[int, dict[int, bytes]] = {one: {} for one in everyone}
            for one in everyone:
                for whose, share in adversary.shares_of(announce(federation, one, members[one]), members[one]).items():
                    shares[whose][one] = share
            total = adversary.ring_sum(federation, (adversary.masked_input(federation, 0, one) for one in everyone))
            for one in everyone:
                secret = adversary.combine(shares[one], federation.plan.threshold)
                adversary.take_off_self_mask(federation, total, secret, 0)
            return adversary.reduce(federation, total), federation.plain_sum(0, everyone)

        return recovered(attempt, whose="the sum over clients with different views")


class SmallCohort(Attack):
    """The victim is shown as few others as the threshold allows."""

    name = "small-cohort"
    adversary = "malicious server"
    goal = "Run the epoch with a few members only, so that each input hides behind fewer others than was agreed."
    promises = ("P2",)
    defences = ("cohort-check", "_rule_enough_survivors")

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Show `threshold` members each other's advertisements, and open their sum."""
        few = laboratory.cohort.threshold
        laboratory.need(few < laboratory.cohort.least, "the threshold alone demands as many as the minimum")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            chosen = tuple(range(few))
            every = advertised(federation)
            items = {member: every[member] for member in chosen}
            sealed = adversary.sealed_by(federation, dict.fromkeys(chosen, items))
            for member in chosen:
                federation.tell(member, adversary.delivery(federation, sealed, member, chosen))
            begin(federation, chosen)
            secrets = rebuild(federation, {one: announce(federation, one, chosen) for one in chosen}, chosen)
            opened = open_sum(federation, 0, chosen, secrets, {}, shown=items)
            return opened, federation.plain_sum(0, chosen)

        return recovered(attempt, whose=f"the sum over {few} clients (minimum: {laboratory.cohort.least})")


LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]  # fmt: skip


def resigned(federation: Federation, item: Advertisement, **changed: bytes) -> Advertisement:
    """An advertisement of a member that colludes: whatever it holds is rightly signed."""
    item = msgspec.structs.replace(item, **changed)
    signature = federation.signers[item.member].sign("advertisement", *item.signed_parts())
    return msgspec.structs.replace(item, signature=signature)


def believed(laboratory: Laboratory, defences: Defences, changed: Callable[[dict[int, Any]], dict[str, bytes]]) -> bool:
    """Whether client and server machine take a colluder's advertisement with these changes."""
    federation = laboratory.federation(defences)
    federation.emit(federation.server.start())
    items = advertised(federation)
    items[COLLUDER] = resigned(federation, items[COLLUDER], **changed(items))
    taken = isinstance(said(federation.tell(VICTIM, shown(federation, items))), Shares)
    federation.server.receive(OTHER, items[OTHER])
    federation.server.receive(COLLUDER, items[COLLUDER])
    return taken


class LowOrderKeys(Attack):
    """Public keys with which every secret is zero."""

    name = "low-order-keys"
    adversary = "colluding client"
    goal = "Advertise a point of low order, so that the pairwise masks with it are known to everybody on the network."
    paper = "RFC 7748, section 6.1; Bernstein, PKC 2006"
    promises = ("P5", "P7")
    defences = ("low-order-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Try all seven points as the share key and as a mask key."""

        def attempt(low: bytes, field: str) -> bool:
            def changed(items: dict[int, Any]) -> dict[str, bytes]:
                keys = items[COLLUDER].mask_keys
                return {field: low if field == "share_key" else keys[:32] + low + keys[64:]}

            return believed(laboratory, defences, changed)

        tries = {
            f"point {number} as {field}": partial(attempt, low, field)
            for number, low in enumerate(LOW_ORDER)
            for field in ("share_key", "mask_keys")
        }
        return counted(tries, what="points of low order")


class DuplicatedKeys(Attack):
    """A public key that occurs twice."""

    name = "duplicated-keys"
    adversary = "colluding client"
    goal = "Advertise another member's public key, or one key for all steps, so that secrets are shared or repeated."
    promises = ("P5", "P12")
    defences = ("distinct-keys",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Four ways to repeat a key, rightly signed."""
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
            "the own key in every step": lambda items: {
                "mask_keys": items[COLLUDER].mask_keys[:32] * (len(items[COLLUDER].mask_keys) // 32)
            },
        }
        return counted(
            {how: partial(believed, laboratory, defences, changed) for how, changed in ways.items()},
            what="repeated keys",
        )


class AlteredShares(Attack):
    """Sealed shares that are changed on their way through the server."""

    name = "altered-shares"
    adversary = "malicious server"
    goal = "Alter, swap, reflect or replay the shares that it routes, so that later sums are wrong or never open."
    promises = ("P8", "P10")
    defences = ("sealed-shares",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Five deliveries that are not what was sealed."""

        def attempt(how: str) -> bool:
            earlier = laboratory.federation(defences)
            earlier.set_up()
            later = msgspec.structs.replace(earlier.plan, epoch=1)
            federation = laboratory.federation(defences, plan=later)
            federation.set_up(lost={(VICTIM, ShareDelivery)})
            honest = delivered(federation, VICTIM)
            parcel = {item.member: item.ciphertext for item in honest.items}
            if how == "a bit flipped":
                parcel[1] = bytes([parcel[1][0] ^ 1]) + parcel[1][1:]
            elif how == "two senders swapped":
                parcel[1], parcel[2] = parcel[2], parcel[1]
            elif how == "meant for another":
                parcel[1] = adversary.parcel(delivered(federation, 2), 1)
            elif how == "sent back":
                own = next(one for one in federation.sent if one.kind is Shares and one.member == VICTIM)
                parcel[1] = msgspec.msgpack.decode(own.data)[2][0][1]
            else:
                parcel[1] = adversary.parcel(delivered(earlier, VICTIM), 1)
            items = tuple(SealedShare(member, ciphertext) for member, ciphertext in sorted(parcel.items()))
            federation.tell(VICTIM, ShareDelivery(federation.plan.digest, honest.members, items))
            return federation.clients[VICTIM].state is State.READY

        ways = ("a bit flipped", "two senders swapped", "meant for another", "sent back", "of an earlier epoch")
        return counted({how: partial(attempt, how) for how in ways}, what="altered deliveries")


def delivered(federation: Federation, member: int) -> ShareDelivery:
    """The delivery of shares that was sent to a member."""
    for item in federation.sent:
        if item.member == member and isinstance(item.message, ShareDelivery):
            return item.message
    raise Stuck(f"no shares were delivered to member {member}")


class ReplayedAdvertisement(Attack):
    """Keys of an earlier epoch."""

    name = "replayed-advertisement"
    adversary = "malicious server"
    goal = "Show a member's rightly signed keys of an earlier epoch, whose secrets may be known by now."
    promises = ("P3", "P5")
    defences = ("advertisement-context",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """As it was, and relabelled for the new plan."""

        def attempt(relabelled: bool) -> bool:
            federation = laboratory.federation(defences)
            old = advertised(federation)[COLLUDER]
            federation.plan = msgspec.structs.replace(federation.plan, epoch=1)
            if relabelled:
                old = msgspec.structs.replace(old, plan=federation.plan.digest)
            items = {**advertised(federation), COLLUDER: old}
            return isinstance(said(federation.tell(VICTIM, shown(federation, items))), Shares)

        tries = {
            "an earlier epoch's as it was": partial(attempt, False),
            "one relabelled for this epoch": partial(attempt, True),
        }
        return counted(tries, what="old advertisements")


RECIPE = b"r" * 32


class PlanBelowPolicy(Attack):
    """Plans that ask for more, or protect less, than the client's own policy allows."""

    name = "plan-below-policy"
    adversary = "malicious server"
    goal = "Have a client take part under settings that its policy rules out."
    promises = ("P6",)
    defences = ("_rule_policy",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """One plan for each limit of the policy."""
        cohort = laboratory.cohort
        policy = Policy(
            least_cohort=cohort.clients,
            least_survivors=cohort.least_survivors,
            least_threshold=cohort.threshold,
            colluders=cohort.colluders,
            most_steps=3,
            most_coordinates=20,
            most_value_bits=cohort.value_bits,
            tasks={"update": 1.0},
            suites=(cohort.suite,),
            recipe=RECIPE,
        )
        (other_suite,) = set(SUITES) - {cohort.suite}
        within: dict[str, Any] = {"recipe": RECIPE, "policy": policy}
        beyond: dict[str, dict[str, Any]] = {
            "more steps": {"steps": 4},
            "more coordinates": {"specs": (VectorSpec("update", (Block("dream", 21, 1.0),)),)},
            "finer values": {"value_bits": cohort.value_bits + 1},
            "another mask suite": {"suite": other_suite},
            "other learning settings": {"recipe": bytes(32)},
            "a task never agreed to": {"specs": (VectorSpec("gradient", (Block("dream", 20, 1.0),)),)},
            "a larger clip": {"specs": (VectorSpec("update", (Block("dream", 20, 1.5),)),)},
        }
        if cohort.clients > max(cohort.threshold, cohort.least_survivors, 2):
            beyond["fewer members"] = {"cohort": tuple(range(cohort.clients - 1))}
        if cohort.least_survivors > cohort.colluders + 2:
            beyond["fewer survivors"] = {"least_survivors": cohort.least_survivors - 1}
        if cohort.colluders:
            beyond["fewer colluders"] = {"colluders": cohort.colluders - 1}
        if 2 * (cohort.threshold - 1) > cohort.clients + cohort.colluders:
            beyond["a lower threshold"] = {"threshold": cohort.threshold - 1}
        if not isinstance(offer(laboratory.federation(defences, **within)), Advertisement):
            raise Stuck("a plan within the policy was refused")

        def attempt(what: dict[str, Any]) -> bool:
            return isinstance(offer(laboratory.federation(defences, **{**within, **what})), Advertisement)

        tries = {how: partial(attempt, what) for how, what in beyond.items()}
        return counted(tries, what="plans beyond the policy")


def offer(federation: Federation) -> Any:
    """The victim's answer to the federation's plan."""
    return said(federation.tell(VICTIM, PlanOffer(federation.plan)))


class LessNoise(Attack):
    """Plans whose sums would carry less noise than the client demands."""

    name = "less-noise-than-demanded"
    adversary = "malicious server"
    goal = (
        "Have a client take part in sums with less noise than its policy demands, against all survivors or colluders."
    )
    paper = "Kairouz, Liu, Steinke, ICML 2021"
    promises = ("P15", "P6")
    defences = ("_rule_noise",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """No noise, half of it, and shares that make up the whole only if nobody drops out and nobody colludes."""
        cohort = laboratory.cohort
        honest = laboratory.federation().plan.least_honest
        policy = Policy(
            least_cohort=2, least_survivors=2, colluders=0, tasks={"update": 1.0}, least_noise={"update": 1.0}
        )

        def attempt(multiplier: float, shares: int) -> bool:
            return isinstance(
                offer(laboratory.federation(defences, policy=policy, **noised(laboratory, multiplier, shares))),
                Advertisement,
            )

        if not attempt(1.0, honest):
            raise Stuck("a plan with the noise that is demanded was refused")
        tries = {"no noise": partial(attempt, 0.0, honest), "half the noise": partial(attempt, 0.5, honest)}
        if cohort.clients > honest:
            tries["noise that counts on everybody"] = partial(attempt, 1.0, cohort.clients)
        return counted(tries, what="plans with too little noise")


def noised(laboratory: Laboratory, multiplier: float, shares: int) -> dict[str, Any]:
    """Options of a plan whose vectors carry noise, of which `shares` clients' make up the whole."""
    spec = VectorSpec("update", (Block("dream", 20, 1.0),))
    if not multiplier:
        return {"specs": (spec,)}
    spec = spec.with_noise(1.0, multiplier, shares)
    return {"specs": (spec,), "modulus_bits": 32}


class UnsafeThreshold(Attack):
    """A threshold at which both kinds of share can be had without any rule being broken."""

    name = "unsafe-threshold"
    adversary = "malicious server with colluding clients"
    goal = "Plan a threshold of (n + c) / 2 and ask one half of the clients for each kind of share."
    paper = "Bonawitz et al., CCS 2017, section 6.2"
    promises = ("P1", "P9")
    defences = ("plan-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Offer the plan; then split the clients."""
        cohort = laboratory.cohort
        low = (cohort.clients + cohort.colluders) // 2
        least = min(cohort.least_survivors, cohort.clients - 1)

        def attempt() -> tuple[Vector, Vector]:
            safe = laboratory.federation().plan
            plan = msgspec.structs.replace(safe, threshold=low, least_survivors=least)
            federation = laboratory.federation(defences, plan=plan, policy=None)
            offer(federation)
            federation.masked()
            return adversary.split_and_collude(federation, VICTIM, cohort.members[cohort.clients - cohort.colluders :])

        return recovered(attempt)


class DowngradedVersion(Attack):
    """A plan of another version of the protocol."""

    name = "downgraded-version"
    adversary = "malicious server"
    goal = "Plan an epoch under an older version of the protocol, whose weaknesses are known."
    promises = ("P6", "P7")
    defences = ("version-check",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Two versions that are not this one."""

        def attempt(version: str) -> bool:
            plan = msgspec.structs.replace(laboratory.federation().plan, protocol=version)
            federation = laboratory.federation()
            federation.plan = plan
            return isinstance(offer(federation), Advertisement)

        return counted(
            {version: partial(attempt, version) for version in ("secure-codream/0", "none")},
            what="other versions",
        )


class ReusedSession(Attack):
    """The whole epoch once more."""

    name = "reused-session"
    adversary = "malicious server"
    goal = "Replay a finished epoch without one client: the difference of both sums is its input."
    paper = "Bonawitz et al., CCS 2017, section 4"
    promises = ("P3",)
    defences = ("_rule_fresh_epoch",)

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Play the same plan twice; inputs are the same since the public state is."""
        laboratory.need(laboratory.cohort.spare >= 1, "nobody may be missing")

        def attempt() -> tuple[Vector, Vector]:
            federation = laboratory.federation(defences)
            signs = {
                member: laboratory.generator(f"{self.name} {member}").choice([-1.0, 1.0], 20)
                for member in all_but(federation)
            }  # the clip's ends are encoded without rounding, so the same input is the same vector
            federation.input_of = lambda member, compute: {"dream": signs[member] * compute.clips[0]}
            sums = []
            for lost in (set(), {(VICTIM, MaskedInput)}):
                federation.server = ServerEpoch(federation.plan, federation.roster)
                if not federation.set_up():
                    raise federation.refusals[0][1]
                reveal = federation.step(lost=lost)
                if reveal is None:
                    raise Stuck(f"a step failed: {federation.failures}")
                sums.append(reveal.total)
                for member in all_but(federation):
                    federation.tell(member, Farewell(b"", "over"))
            return adversary.reduce(federation, sums[0] - sums[1]), federation.vectors[0, VICTIM]

        return recovered(attempt)


ATTACKS: tuple[Attack, ...] = (
    SubstitutedKeys(),
    SybilAdvertisements(),
    SybilRoster(),
    OldRoster(),
    SplitView(),
    SmallCohort(),
    LowOrderKeys(),
    DuplicatedKeys(),
    AlteredShares(),
    ReplayedAdvertisement(),
    PlanBelowPolicy(),
    LessNoise(),
    UnsafeThreshold(),
    DowngradedVersion(),
    ReusedSession(),
)
