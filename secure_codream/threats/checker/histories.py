"""The model checker, further: what clients take for true, what they learn, and how often they can be asked.

`histories` goes through epochs one after the other: finished, cut short at any client, given up, begun again; last sums
forged if somebody colludes; votes, certificates and records shown to any client at any time; clients that crash. No two
clients may learn different things under one number. `lies` are sums that are not true, told without a colluder, and
`false_records` epochs that never were so. `Limits` are what one client grants in its life.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product

import msgspec

from codream_protocols import chain as links
from codream_protocols import messages
from codream_protocols.charter import Offer, Policy
from codream_protocols.client import ClientProtocol, Send, State
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.packing import pack
from codream_protocols.record import Trajectory
from secure_codream.threats.checker.enumerator import Set
from secure_codream.threats.checker.model_checker import Explorer
from secure_codream.threats.checker.node import Node, roots
from secure_codream.threats.checker.reader import Leak
from secure_codream.threats.checker.world import Setting, World


@dataclass(frozen=True)
class Tried:
    """How much was tried, what broke a promise, if anything did, and how often somebody learnt something."""

    count: int
    leak: Leak | None = None
    learnt: int = 0


# -- alike ---------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Where all clients stand, and every whole epoch that the server could show, true or forged."""

    nodes: Mapping[int, Node]
    shelf: tuple[Trajectory, ...] = ()
    epochs: int = 0


class Histories:
    """Every history of a few epochs.

    Args:
        world: a federation of one step an epoch.
        epochs: how many are begun.
        crashes: whether clients crash, too.
    """

    def __init__(self, world: World, epochs: int, *, crashes: bool = False) -> None:
        self.world, self._most, self._crashes = world, epochs, crashes
        self._explorer = Explorer(world, uniform=True)

    def search(self) -> Tried:
        """Go through scenes until two clients have learnt different things, or all have been seen."""
        first = Scene(roots(self.world))
        seen, pending, learnt = {self._summary(first)}, [first], 0
        while pending:
            scene = pending.pop()
            learnt += any(node.story.learnt for node in scene.nodes.values())
            if (leak := self._differ(scene)) is not None:
                return Tried(len(seen), leak, learnt)
            for following in self._next(scene):
                summary = self._summary(following)
                if summary not in seen:
                    seen.add(summary)
                    pending.append(following)
        return Tried(len(seen), learnt=learnt)

    def _differ(self, scene: Scene) -> Leak | None:
        learnt: dict[int, bytes] = {}
        for node in scene.nodes.values():
            for number, _, what in node.story.learnt:
                if learnt.setdefault(number, what) != what:
                    told = f"two clients learn different things as number {number}"
                    return Leak("Alike", told, tuple(scene.nodes.values()))
        return None

    def _summary(self, scene: Scene) -> tuple[object, ...]:
        """What makes a difference from here on, as far as names go: chains are numbered in the order of the shelf."""
        numbers = {public.chain: number for number, public in enumerate(scene.shelf)}
        heads = {public.next_head: number for number, public in enumerate(scene.shelf)}
        epochs = {plan: epoch for node in scene.nodes.values() for epoch, plan in node.story.joined}
        clients = []
        for node in scene.nodes.values():
            machine = node.machine
            begun = (-1, -1) if machine._begun is None else (epochs[machine._begun.plan], machine._begun.step)
            clients.append(
                (
                    machine.state.value,
                    -1 if machine.plan is None else epochs[machine.plan.digest],
                    numbers.get(node.chain, -1),
                    -1 if machine._vote is None else numbers.get(machine._vote[0].chain, -1),
                    heads.get(machine.head, -1),
                    machine._next_epoch,
                    machine._attempts,
                    len(machine._wrong_sums),
                    begun,
                    tuple((number, heads.get(head, -1)) for number, head, _ in node.story.learnt),
                    tuple(sorted(numbers[chain] for chain in _votes(node) if chain in numbers)),
                )
            )
        shelf = tuple((public.plan.offer.epoch, heads.get(public.plan.offer.head, -1)) for public in scene.shelf)
        return (tuple(sorted(clients)), shelf, scene.epochs)  # sorted: names make no difference

    def _next(self, scene: Scene) -> Iterator[Scene]:
        if scene.epochs < self._most:
            yield from self._epochs(scene)
        for member, node in scene.nodes.items():
            for public in scene.shelf:
                votes = self._all_votes(scene, public)
                record, frames = public.record(votes)
                for after in (
                    node.tell(record, frames) if votes else None,
                    node.tell(messages.Certificate(public.plan.digest, votes)),
                ):
                    if after is not None:
                        yield replace(scene, nodes={**scene.nodes, member: after})
            if self._crashes and (node.machine.state is not State.IDLE):
                yield replace(scene, nodes={**scene.nodes, member: node.restart()})

    def _all_votes(self, scene: Scene, public: Trajectory) -> tuple[messages.SignedBy, ...]:
        """Every vote for the end of an epoch that is to be had."""
        found = {member: _votes(node).get(public.chain) for member, node in scene.nodes.items()}
        votes = [messages.SignedBy(member, signature) for member, signature in found.items() if signature is not None]
        statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
        votes += [
            messages.SignedBy(member, self.world.signers[member].sign("vote", *statement))
            for member in self.world.played
        ]
        return tuple(sorted(votes, key=lambda vote: vote.member))

    def _epochs(self, scene: Scene) -> Iterator[Scene]:
        """One epoch more, at each head where somebody takes part; its only sum is told to clients in every way."""
        heads = dict.fromkeys(head for node in scene.nodes.values() for head in node.machine.history.heads)
        for head in heads:
            joined = {
                member: after
                for member, node in scene.nodes.items()
                if (after := node.tell(messages.Invitation(Offer(scene.epochs, self._cohort(scene, head), head))))
                is not None
                and after.machine.state is State.ADVERTISED
            }
            plans = {after.advertisement.plan for after in joined.values()}
            for plan in plans:
                there = {member: after for member, after in joined.items() if after.advertisement.plan == plan}
                yield from self._epoch(scene, there)

    def _cohort(self, scene: Scene, head: bytes) -> Set:
        """Who is invited: everybody, or where that is not needed those who might come."""
        there = [member for member, node in scene.nodes.items() if head in node.machine.history.heads]
        chosen = tuple(sorted([*there, *self.world.played]))
        return chosen if chosen in self.world.summable else self.world.everybody

    def _epoch(self, scene: Scene, joined: Mapping[int, Node]) -> Iterator[Scene]:
        sealed, masked = _through(self._explorer, joined)
        if not masked:
            return
        some = next(iter(masked.values()))
        assert some.public is not None  # noqa: S101 - in its step
        told = [
            self.world.published(some.machine, some.public.members, lie)
            for lie in ((0, 1) if self.world.played else (0,))
        ]
        after = [some.public.after(message.members, frames[0], message.tag) for message, frames in told]
        shelf = [*scene.shelf, *after]
        for chosen in product((None, *range(len(told))), repeat=len(masked)):
            nodes = {**scene.nodes, **joined, **sealed, **masked}
            for (member, node), number in zip(masked.items(), chosen, strict=True):
                if number is not None:
                    nodes[member] = node.tell(*told[number]) or node
            yield Scene(nodes, tuple(shelf), scene.epochs + 1)


def _votes(node: Node) -> dict[bytes, bytes]:
    """All votes that a client has sent: chain -> signature."""
    return {
        sent.message.chain: sent.message.signature
        for sent in node.story.sent
        if isinstance(sent.message, messages.Vote)
    }


# -- true ---------------------------------------------


def lies(world: World, cohort: Set = ()) -> Tried:
    """Tell a client, without a colluder in the cohort, any sums over any sets with any tags that a server may have.

    Sums: of every set of members, those of one too many by one, twice as much, nothing. Tags: of the sum of every set
    that may be summed, and made-up ones; a superset of what a server sees, which is one.
    """
    count = 0
    explorer = Explorer(world, uniform=True)
    for set_up in islice(explorer.set_ups(roots(world), cohorts=[cohort or world.everybody]), 1):
        stages = [set_up.nodes, *(after for _, after in explorer.tellings(set_up.nodes))]
        some = world.honest[0]  # the others differ in their names alone
        for node in {id(stage[some]): stage[some] for stage in stages if stage[some].chain}.values():
            assert node.public is not None  # noqa: S101 - in a step
            plan, inside = node.public.plan, set(node.public.members)
            sums = [world.plain(plan, one) for one in world.sets]
            sums += [world.plain(plan, inside, 1), world.plain(plan, inside) * 2, world.plain(plan, ())]
            tags = [
                world.tag(node.machine, world.plain(plan, one), one) for one in world.summable if set(one) <= inside
            ]
            tags += [bytes(16), secrets.token_bytes(16)]
            for members, words, tag in product(world.sets, sums, tags):
                message = messages.Published(plan.digest, node.public.step, members, tag)
                after = node.tell(message, (pack(words, plan.modulus_bits(0)),))
                count += 1
                if after is not None and len(after.story.took) > len(node.story.took):
                    took = after.story.took[-1]
                    if took.words != tuple(map(int, world.plain(plan, took.members))):
                        told = f"takes a sum over {took.members} that is not theirs"
                        return Tried(count, Leak("True", told, (after,)))
                node.forget()
    return Tried(count)


def false_records(world: World, cohort: Set = ()) -> Tried:
    """Show each client records of an epoch that ended otherwise: while it is in it, and after a crash.

    Played members vote for them; without one in the cohort nobody does whose vote counts.
    """
    count = 0
    explorer = Explorer(world, uniform=True)
    for set_up in explorer.set_ups(roots(world), cohorts=[cohort or world.everybody]):
        for node in set_up.nodes.values():
            if node.public is None:
                continue
            for lie, there in product((1, 2), (node, node.restart())):
                public = copy.deepcopy(node.public)
                while not public.over:
                    words = world.plain(public.plan, public.members, lie)
                    tag = world.tag(node.machine, words, public.members)
                    public.absorb(public.members, pack(words, public.plan.modulus_bits(0)), tag)
                count += 1
                votes = _played_votes(world, public)
                after = there.tell(*public.record(votes))
                if after is not None and _votes(after):
                    how = "that no member of the epoch has voted for" if not votes else "it cannot have seen"
                    return Tried(count, Leak("True", f"votes for a record {how}", (after,)))
    return Tried(count)


def rewritten_records(world: World) -> Tried:
    """Show each client that has taken a sum a record in which that sum was another, with more votes than colluders.

    One honest member was told the other sum, by the server with the colluder, and has rightly voted for it.
    """
    count = 0
    explorer = Explorer(world, uniform=True)
    for set_up in islice(explorer.set_ups(roots(world), cohorts=[world.everybody]), 1):
        masked = [node for _, stage in explorer.tellings(set_up.nodes) for node in stage.values() if node.chain]
        for node in masked:
            assert node.public is not None  # noqa: S101 - in a step
            after_first = node.tell(*world.published(node.machine, node.public.members, 0))
            if after_first is None or after_first.public is None or after_first.public.step == 0:
                continue
            node, seen = after_first, after_first.public
            other = next(one for one in world.everybody if one not in (*world.played, node.member))
            public = Trajectory(seen.plan, seen.course, seen.last, seen.advertised, seen.start)
            while not public.over:
                words = world.plain(public.plan, public.members, 1)
                frame = pack(words, public.plan.modulus_bits(0))
                public.absorb(public.members, frame, world.tag(node.machine, words, public.members))
            statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
            told = messages.SignedBy(other, world.signers[other].sign("vote", *statement))
            for there in (node, node.restart()):
                count += 1
                after = there.tell(*public.record([*_played_votes(world, public), told]))
                if after is not None and _votes(after):
                    return Tried(count, Leak("True", "votes for a record whose sums it has seen otherwise", (after,)))
    return Tried(count)


def _played_votes(world: World, public: Trajectory) -> tuple[messages.SignedBy, ...]:
    statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
    return tuple(messages.SignedBy(member, world.signers[member].sign("vote", *statement)) for member in world.played)


def framed(world: World) -> Tried:
    """Garble what one honest member sealed for another, anywhere: nobody may complain of an honest member."""
    count = 0
    nodes: dict[int, Node] = {}
    explorer = Explorer(world, uniform=True)
    for member, node in roots(world).items():
        nodes[member] = explorer.invitations(node, 0, [world.everybody])[0][1]
    sealed = {member: explorer.advertisements(node, nodes)[0][1] for member, node in nodes.items()}
    for member, node in sealed.items():
        for other, theirs in sealed.items():
            if other == member:
                continue
            for part in ("kem", "ciphertext", "signature"):
                items = []
                for sender in world.everybody:
                    if sender == member:
                        continue
                    message = sealed[sender].last
                    assert isinstance(message, messages.Seals)  # noqa: S101 - just sealed
                    seal = next(item for item in message.items if item.member == member)
                    seal = seal.sent_by(sender)
                    if sender == theirs.member:
                        data = bytearray(getattr(seal, part))
                        data[7] ^= 1
                        seal = msgspec.structs.replace(seal, **{part: bytes(data)})
                    items.append(seal)
                count += 1
                after = node.tell(messages.SealDelivery(node.advertisement.plan, tuple(items)))
                if after is not None and isinstance(after.last, messages.Complaint):
                    return Tried(count, Leak("Inputs", f"member {member} complains of honest member {other}", (after,)))
    return Tried(count)


def impersonated(world: World) -> Tried:
    """Play everybody else towards one client, with keys of the server's own making."""
    explorer = Explorer(world)
    root = roots(world)[0]
    node = explorer.invitations(root, 0, [world.everybody])[0][1]
    plan = node.machine.plan
    assert plan is not None  # noqa: S101 - invited
    seats = {member: world.seat(plan, member, 0) for member in world.everybody if member != 0}
    items = [node.advertisement, *(seat.advertisement for seat in seats.values())]
    after = node.tell(messages.Advertisements(plan.digest, tuple(items)))
    if after is None:
        return Tried(1)
    shown = after.tell(messages.SealDelivery(plan.digest, tuple(seat.seal(after.machine) for seat in seats.values())))
    return Tried(1, None if shown is None else explorer.reader.leak([shown]))


def two_values(world: World) -> Tried:
    """Let a colluder seal another value for one client than it committed to: the start would be its choice."""
    explorer = Explorer(world, uniform=True)
    invited = {member: explorer.invitations(node, 0, [world.everybody])[0][1] for member, node in roots(world).items()}
    sealed, _ = _through(explorer, invited)
    count = 0
    for node in sealed.values():
        epoch = node.machine._epoch
        assert epoch is not None  # noqa: S101 - sealed
        items = []
        for sender in world.everybody:
            if sender in world.honest and sender != node.member:
                message = sealed[sender].last
                assert isinstance(message, messages.Seals)  # noqa: S101 - just sealed
                seal = next(item for item in message.items if item.member == node.member)
                items.append(seal.sent_by(sender))
            elif sender in world.played:
                items.append(world.seat(epoch.plan, sender, 0).seal(node.machine, value=secrets.token_bytes(32)))
        count += 1
        after = node.tell(messages.SealDelivery(epoch.plan.digest, tuple(items)))
        if after is not None and after.chain:
            return Tried(count, Leak("What", "begins an epoch at a start that a colluder chose", (after,)))
    return Tried(count)


def copied_keys(world: World) -> Tried:
    """Let a colluder advertise an honest member's mask keys as its own, and tell all clients every set."""
    explorer = Explorer(world, uniform=True)
    invited = {member: explorer.invitations(node, 0, [world.everybody])[0][1] for member, node in roots(world).items()}
    plan, copied, last = invited[0].machine.plan, invited[0].advertisement, world.played[-1]
    assert plan is not None  # noqa: S101 - invited
    seat = world.seat(plan, last, 0)
    changed = msgspec.structs.replace(seat.advertisement, mask_keys=copied.mask_keys)
    signature = world.signers[last].sign("advertisement", *changed.signed_parts())
    seat.advertisement = msgspec.structs.replace(changed, signature=signature)
    _, masked = _through(explorer, invited)
    count = 0
    for _, after in explorer.tellings(masked):
        count += 1
        if (leak := explorer.reader.leak(list(after.values()))) is not None:
            return Tried(count, leak)
    return Tried(count)


def replays(world: World) -> Tried:
    """Two epochs, the first given up, clients that crash between; at each stage say again whatever was said before.

    Nothing that was not sent before may come out, but for greetings: what is told to all of them comes once.
    """
    explorer = Explorer(world, uniform=True)
    count, nodes = 0, roots(world)
    for epoch in (0, 1):
        invited = {member: explorer.invitations(node, epoch, [world.everybody])[0][1] for member, node in nodes.items()}
        sealed, masked = _through(explorer, invited)
        answered = next(iter(explorer.tellings(masked)))[1]
        ended = {}
        for member, node in answered.items():
            assert node.public is not None  # noqa: S101 - in its step
            after = node.tell(*world.published(node.machine, node.public.members))
            assert after is not None  # noqa: S101 - a sum that fits
            ended[member] = node.restart() if epoch == 0 else after
        for stage in (invited, sealed, masked, answered, ended):
            said = dict.fromkeys(one for node in stage.values() for one in node.heard)
            for (data, frames), node in product(said, stage.values()):
                after = node.tell(messages.decode_to_client(data), frames)
                count += 1
                new: tuple[Send, ...] = () if after is None else after.story.sent[len(node.story.sent) :]
                if any(not isinstance(sent.message, messages.Hello | messages.Refusal) for sent in new):
                    kind = type(new[0].message).__name__
                    return Tried(count, Leak("Inputs", f"answers what was said before with a new {kind}", (node,)))
        nodes = ended
    return Tried(count)


# -- limits ---------------------------------------------


def asked_too_often(setting: Setting, client_class: type[ClientProtocol], *, rounds: int = 12) -> Tried:
    """Ask a client again and again: epochs given up, wrong sums, crashes, old epochs; count what it grants.

    The setting's policy and attempts are the limits. A client may join no epoch twice.
    """
    world = World(setting, client_class)
    explorer = Explorer(world, uniform=True)
    nodes = roots(world)
    policy, count, epoch, joined, since = setting.policy, 0, 0, 0, 0
    for number in range(rounds):
        invited = {}
        for member, node in nodes.items():
            menu = explorer.invitations(node, epoch, [world.everybody])
            invited[member] = menu[0][1] if menu else node
        count += 1
        one = invited[0]
        if len(one.story.joined) > joined:
            joined, since = joined + 1, since + 1
        elif number == 0:
            raise RemoteProtocolError("a client that takes part in nothing", "a setting with room for one epoch")
        if since > setting.attempts:
            return Tried(count, Leak("What", f"joins {since} epochs after one certificate", (one,)))
        sealed, masked = _through(explorer, invited)
        one = masked.get(0, one)
        if one.machine.steps_begun > policy.most_total_steps:
            return Tried(count, Leak("Budget", f"begins {one.machine.steps_begun} steps", (one,)))
        if policy.most_rho is not None and one.machine.spent_rho > policy.most_rho * 1.001:
            return Tried(count, Leak("Budget", f"spends rho {one.machine.spent_rho:.3g}", (one,)))
        nodes = {**invited, **sealed, **masked}
        kind = number % 3
        for member, node in list(nodes.items()):
            plan = node.machine.plan
            if plan is None:
                continue
            if kind == 0 and node.public is not None:
                message, frames = world.published(node.machine, node.public.members, 0)
                told = node.tell(msgspec.structs.replace(message, tag=bytes(16)), frames)
                nodes[member] = told or node
            elif kind == 1:
                nodes[member] = node.tell(messages.GivenUp(plan.digest, "given up")) or node
            else:
                nodes[member] = node.restart()
        if nodes[0].story.wrong_sums > policy.most_wrong_sums + 1:
            wrong = nodes[0].story.wrong_sums
            return Tried(count, Leak("True", f"goes on after {wrong} sums that failed their check", (nodes[0],)))
        for old in nodes[0].story.joined:
            again = nodes[0].tell(messages.Invitation(Offer(old[0], world.everybody, nodes[0].machine.head)))
            count += 1
            if again is not None and len(again.story.joined) > len(nodes[0].story.joined):
                return Tried(count, Leak("What", f"joins epoch {old[0]} twice", (again,)))
        epoch += 1
    return Tried(count)


def asked_at_old_heads(world: World) -> Tried:
    """After a certificate, offer an epoch at the head before it: who joins goes on at another history than its own."""
    explorer = Explorer(world, uniform=True)
    invited = {member: explorer.invitations(node, 0, [world.everybody])[0][1] for member, node in roots(world).items()}
    _, masked = _through(explorer, invited)
    voted = {
        member: node.tell(*world.published(node.machine, node.public.members)) or node
        for member, node in masked.items()
        if node.public is not None
    }
    public = voted[0].machine._vote
    assert public is not None  # noqa: S101 - the only sum is in
    votes = [messages.SignedBy(member, _votes(node)[public[0].chain]) for member, node in voted.items()]
    message = messages.Certificate(public[0].plan.digest, (*votes, *_played_votes(world, public[0])))
    count = 0
    for node in voted.values():
        after = node.tell(message)
        assert after is not None and after.story.learnt  # noqa: S101 - all have voted
        for head in after.machine.history.heads[:-1]:
            again = after.tell(messages.Invitation(Offer(1, world.everybody, head)))
            count += 1
            if again is not None and again.machine.plan is not None:
                return Tried(count, Leak("What", "joins an epoch at a head that is not its newest", (again,)))
    return Tried(count)


def refused_by_policy(client_class: type[ClientProtocol]) -> Tried:
    """Offer an epoch that the client's policy forbids, in each of its limits."""
    forbidden = {
        "least_cohort": Policy(least_cohort=4),
        "least_survivors": Policy(least_survivors=4),
        "colluders": Policy(colluders=2),
        "modes": Policy(modes=("resilient",)),
        "suites": Policy(suites=("chacha20",)),
        "most_steps": Policy(most_steps=1),
        "most_coordinates": Policy(most_coordinates=1),
        "most_value_bits": Policy(most_value_bits=8),
        "least_noise": Policy(least_noise=1.0),
    }
    for count, (name, policy) in enumerate(forbidden.items(), 1):
        world = World(Setting("lockstep", 3, steps=2, policy=policy), client_class)
        node = roots(world)[0]
        after = node.tell(messages.Invitation(Offer(0, world.everybody, node.machine.head)))
        if after is not None and after.machine.plan is not None:
            return Tried(count, Leak("Budget", f"joins an epoch beyond its policy's {name}", (after,)))
    return Tried(len(forbidden))


def _through(explorer: Explorer, invited: Mapping[int, Node]) -> tuple[dict[int, Node], dict[int, Node]]:
    """A set-up as an honest server runs it: clients that have sealed, and those that have masked."""
    sealed = {
        member: menu[0][1] for member, node in invited.items() if (menu := explorer.advertisements(node, invited))
    }
    masked = {member: menu[0][1] for member, node in sealed.items() if (menu := explorer.deliveries(node, sealed))}
    return sealed, masked
