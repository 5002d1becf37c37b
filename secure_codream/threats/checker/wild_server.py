"""A malicious server that does anything at any time, for as long as it is let: what exhaustive search cannot reach.

It favours messages that a client can take, so that epochs come to their end, and mixes in replays of everything it ever
said to anybody, other sets, other heads, forged sums, records, certificates, crashes, epochs begun anew. At the end
all that came out of the clients is judged as a whole by the `reader`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from random import Random

from codream_protocols import chain as links
from codream_protocols.charter import Offer
from codream_protocols.client import State
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import (
    Certificate,
    GivenUp,
    Invitation,
    Published,
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    ToClient,
    Vote,
    survivor_statement,
)
from codream_protocols.packing import pack
from codream_protocols.record import Trajectory
from secure_codream.threats.checker.enumerator import Set
from secure_codream.threats.checker.histories import Tried
from secure_codream.threats.checker.model_checker import Explorer
from secure_codream.threats.checker.node import Node, roots
from secure_codream.threats.checker.reader import Leak
from secure_codream.threats.checker.world import World

Said = tuple[ToClient, tuple[bytes, ...]]


class WildServer:
    """One run against one world.

    Args:
        world: whom it attacks.
        seed: of its choices; the clients' keys are the operating system's.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world, self._random = world, Random(seed)  # noqa: S311 - an attacker's choices
        self.nodes: dict[int, Node] = roots(world)
        self._explorer = Explorer(world, uniform=True)
        self._said: list[Said] = []
        self._shelf: dict[bytes, Trajectory] = {}
        self._votes: dict[bytes, dict[int, SignedBy]] = {}
        self._offers: list[Offer] = []
        self._chosen: dict[tuple[bytes, int], Set] = {}
        self._lies: dict[tuple[bytes, int], int] = {}
        self._mischief = self._random.choice((0.02, 0.1, 0.3))
        self.taken = 0

    def run(self, actions: int) -> Tried:
        """So many messages, crashes and other turns of fate; then the verdict."""
        for _ in range(actions):
            self._act(self._random.choice(self.world.honest))
        return Tried(self.taken, self._leak(), max(len(node.story.learnt) for node in self.nodes.values()))

    def _leak(self) -> Leak | None:
        nodes = list(self.nodes.values())
        if (leak := self._explorer.reader.leak(nodes)) is not None:
            return leak
        learnt: dict[int, bytes] = {}
        for node in nodes:
            if len({epoch for epoch, _ in node.story.joined}) < len(node.story.joined):
                return Leak("What", f"member {node.member} joins an epoch twice", (node,))
            for number, _, what in node.story.learnt:
                if learnt.setdefault(number, what) != what:
                    return Leak("Alike", f"two clients learn different things as number {number}", (node,))
            if not self.world.played:
                for took in node.story.took:
                    plan = self._plan_words(node, took.members)
                    if took.words != plan:
                        return Leak("True", f"member {node.member} takes a sum that is none", (node,))
        return None

    def _plan_words(self, node: Node, members: Set) -> tuple[int, ...]:
        low = sum(self.world.input(member) & 255 for member in members)
        high = sum(self.world.input(member) >> 8 for member in members)
        return (low, high)

    # -- one turn ---------------------------------------------

    def _act(self, member: int) -> None:
        node = self.nodes[member]
        if self._random.random() > self._mischief:
            self._proceed(node)
            return
        draw = self._random.random()
        if draw < 0.05:
            with suppress(RemoteProtocolError):  # what a client without rules wrote down may not be taken again
                self._set(node.restart())
        elif draw < 0.1 and node.machine.plan is not None:
            self._tell(node, GivenUp(node.machine.plan.digest, "given up"))
        elif draw < 0.6 and self._said:
            self._tell(node, *self._random.choice(self._said))
        elif draw < 0.7 or not self._shelf:
            self._invite(node, odd=True)
        else:
            self._show(node, self._random.choice(list(self._shelf.values())))

    def _proceed(self, node: Node) -> None:
        """What the client waits for, more or less."""
        state = node.machine.state
        if state is State.IDLE:
            self._invite(node, odd=False)
        elif state is State.ADVERTISED:
            sets = self.world.summable
            chosen = node.machine.plan.cohort if node.machine.plan and self._random.random() < 0.9 else None
            self._explore(node, self._explorer.advertisements(node, self.nodes, [chosen or self._random.choice(sets)]))
        elif state is State.SEALED:
            self._explore(node, self._explorer.deliveries(node, self.nodes))
        elif state is State.VOTED:
            vote = node.machine._vote
            if vote is not None:
                self._show(node, vote[0])
        elif state is State.SIGNED:
            self._sign(node)
        elif self.world.setting.mode == "resilient" and self._random.random() < 0.5 and state is not State.ANSWERED:
            self._survivors(node)
        else:
            self._publish(node)

    def _explore(self, node: Node, menu: Sequence[tuple[object, Node]]) -> None:
        if menu:
            self._set(menu[0][1])
            self.taken += 1
        elif self._random.random() < 0.03:
            self._begin()

    def _begin(self) -> None:
        """A new epoch for everybody, at the head of any one; not where somebody has voted, who would wait for ever."""
        if any(node.machine.state is State.VOTED for node in self.nodes.values()):
            return
        node = self.nodes[self._random.choice(self.world.honest)]
        sets = self.world.summable
        cohort = sets[0] if self._random.random() < 0.8 else self._random.choice(sets)
        self._offers.append(Offer(len(self._offers), cohort, node.machine.head))
        for other in self.nodes.values():
            self._tell(other, Invitation(self._offers[-1]))

    def _invite(self, node: Node, *, odd: bool) -> None:
        if odd:
            heads = [head for other in self.nodes.values() for head in other.machine.history.heads]
            number = self._random.randrange(len(self._offers) + 2)
            offer = Offer(number, self._random.choice(self.world.summable), self._random.choice(heads))
            self._tell(node, Invitation(offer))
        elif not (self._offers and self._tell(node, Invitation(self._offers[-1]))) and (
            not self._offers or all(other.machine.plan is None for other in self.nodes.values())
        ):
            self._begin()

    def _survivors(self, node: Node) -> None:
        public = node.public
        if public is None:
            return
        place = (public.chain, public.step)
        if place not in self._chosen or self._random.random() < 0.15:
            sets = self.world.sets if self._random.random() < 0.3 else self.world.summable
            inside = [one for one in sets if set(one) <= set(public.members)]
            self._chosen[place] = self._random.choice(inside)
        if not self._tell(node, Survivors(public.plan.digest, public.step, self._chosen[place])):
            del self._chosen[place]

    def _sign(self, node: Node) -> None:
        epoch, public = node.machine._epoch, node.public
        if epoch is None or epoch.step is None or epoch.step.survivors is None or public is None:
            return
        statement = survivor_statement(public.chain, public.step, epoch.step.survivors)
        items = {}
        for member, other in self.nodes.items():
            theirs = other.machine._epoch
            if theirs is not None and theirs.step is not None and theirs.step.signature is not None:
                message = theirs.step.signature.message
                same = other.chain == public.chain and theirs.step.survivors == epoch.step.survivors
                if isinstance(message, SurvivorSignature) and same:
                    items[member] = SignedBy(member, message.signature)
        for member in self.world.played:
            if member in public.members:
                items[member] = SignedBy(member, self.world.signers[member].sign("survivors", *statement))
        if (
            not self._tell(
                node,
                SurvivorSignatures(public.plan.digest, public.step, tuple(items[member] for member in sorted(items))),
            )
            and self._random.random() < 0.2
        ):
            self._publish(node)

    def _publish(self, node: Node) -> None:
        epoch, public = node.machine._epoch, node.public
        if epoch is None or epoch.step is None or public is None:
            return
        sets = [one for one in self.world.summable if set(one) <= set(public.members)]
        members = epoch.step.survivors or self._chosen.get((public.chain, public.step), sets[0])
        place = (public.chain, public.step)
        if place not in self._lies or self._random.random() < 0.1:
            self._lies[place] = self._random.choice((0, 0, 0, 0, 0, 0, 0, 1))
        lie = self._lies[place]
        if self.world.played or not lie:
            self._tell(node, *self.world.published(node.machine, members, lie))
            return
        others = self._random.choice(sets)
        words = self.world.plain(public.plan, members, lie)
        tag = self.world.tag(node.machine, self.world.plain(public.plan, others), others)
        message = Published(public.plan.digest, public.step, members, tag)
        self._tell(node, message, (pack(words, public.plan.modulus_bits(0)),))

    def _show(self, node: Node, public: Trajectory) -> None:
        statement = links.vote_statement(public.plan.offer.head, public.plan.digest, public.chain)
        votes = dict(self._votes.get(public.chain, {}))
        for member in self.world.played:
            votes[member] = SignedBy(member, self.world.signers[member].sign("vote", *statement))
        items = tuple(votes[member] for member in sorted(votes))
        if self._random.random() < 0.5:
            self._tell(node, Certificate(public.plan.digest, items))
        else:
            self._tell(node, *public.record(items))

    def _tell(self, node: Node, message: ToClient, frames: tuple[bytes, ...] = ()) -> bool:
        if len(self._said) < 400:
            self._said.append((message, frames))
        after = node.tell(message, frames)
        if after is not None:
            self.taken += 1
            self._set(after)
        node.forget()
        return after is not None

    def _set(self, node: Node) -> None:
        self.nodes[node.member] = node
        vote = node.machine._vote
        if vote is not None:
            public, known = vote
            self._shelf.setdefault(public.chain, public)
            self._votes.setdefault(public.chain, {})[node.member] = known[node.member]
        for sent in node.story.sent[-2:]:
            if isinstance(sent.message, Vote) and vote is not None and sent.message.chain == vote[0].chain:
                self._votes[sent.message.chain][node.member] = SignedBy(node.member, sent.message.signature)
        if self.world.played and node.public is not None and not node.public.over and self._random.random() < 0.1:
            self._forge(node)

    def _forge(self, node: Node) -> None:
        """A whole epoch as it might have ended, for the shelf."""
        assert node.public is not None  # noqa: S101 - in a step
        public = copy.deepcopy(node.public)
        while not public.over:
            words = self.world.plain(public.plan, public.members, 3)
            public.absorb(public.members, pack(words, public.plan.modulus_bits(0)), bytes(16))
        self._shelf[public.chain] = public
