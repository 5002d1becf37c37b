"""A model checker: every strategy of a malicious server and its colluders against the real client machines.

`set_ups`: to each client a cohort, and a set of advertisements in any version. `tellings`: in a step to each client a
set of survivors, before or after its vector, then all signatures that this strategy obtains. `sequences`: steps one
after the other; between them each client is told a sum, true or forged, so that histories part in every way. Everything
is tried on the machines; they decide what they take. Of strategies that differ only in the names of honest members, or
of colluders, one is tried. A client that could be told more is told more: what a server knows it still knows then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from codream_protocols import messages
from codream_protocols.charter import Offer
from secure_codream.threats.checker.enumerator import Set
from secure_codream.threats.checker.node import Node
from secure_codream.threats.checker.reader import Reader
from secure_codream.threats.checker.world import World

Label = tuple[Any, ...]


@dataclass(frozen=True)
class SetUp:
    """A set-up that clients took, each in its own way: what each was shown, and the clients after it."""

    shown: Mapping[int, Label]
    nodes: Mapping[int, Node]


class Explorer:
    """Every strategy against one world.

    Args:
        world: the world.
        versions: of each played member's keys.
        late: also let clients be so slow that they hear of survivors before they have a vector.
        uniform: tell all clients the same, where they take it: a short cut to leaks.
    """

    def __init__(self, world: World, *, versions: int = 1, late: bool = False, uniform: bool = False) -> None:
        self.world, self.versions, self.late, self.uniform = world, versions, late, uniform
        self.reader = Reader(world)
        self._names = [] if uniform else world.names()
        self._answers: dict[tuple[int, Set, Set, int], Node | None] = {}
        self._kept: list[Node] = []  # so that no other node gets the number of one in `_answers`

    # -- the set-up ---------------------------------------------

    def set_ups(self, nodes: Mapping[int, Node], epoch: int = 0, *, cohorts: Sequence[Set] = ()) -> Iterator[SetUp]:
        """Every way to set an epoch up with these clients.

        Args:
            nodes: the clients, idle.
            epoch: its number.
            cohorts: that are tried; every set unless given.
        """
        invited = self._each(nodes, lambda node: self.invitations(node, epoch, cohorts or self.world.sets))
        for first in self._joint(nodes, invited):
            shown = self._each(first.nodes, lambda node, first=first: self.advertisements(node, first.nodes))
            for second in self._joint(first.nodes, shown, first.shown):
                opened = self._each(second.nodes, lambda node, second=second: self.deliveries(node, second.nodes))
                yield from self._joint(second.nodes, opened, second.shown)

    def _each(self, nodes: Mapping[int, Node], menu: Any) -> dict[int, list[tuple[Label, Node]]]:
        return {member: menu(node) for member, node in nodes.items()}

    def _joint(
        self,
        nodes: Mapping[int, Node],
        menus: Mapping[int, list[tuple[Label, Node]]],
        before: Mapping[int, Label] | None = None,
    ) -> Iterator[SetUp]:
        """One entry of each client's menu, whoever has one; names that make no difference once."""
        members = list(nodes)
        if self.uniform:
            labels = dict.fromkeys(label for menu in menus.values() for label, _ in menu)
            chosen_menus = [
                [[one for one in menus[member] if one[0] == label][:1] or menus[member][:1] for member in members]
                for label in labels
            ] or [[[] for _ in members]]
        else:
            chosen_menus = [[menus[member] for member in members]]
        for lists in chosen_menus:
            entries: list[list[tuple[Label, Node] | None]] = [[*menu] or [None] for menu in lists]
            for chosen in product(*entries):
                shown = {
                    member: (*(before[member] if before else ()), *([] if entry is None else [entry[0]]))
                    for member, entry in zip(members, chosen, strict=True)
                }
                if self._is_first(shown):
                    yield SetUp(
                        shown,
                        {
                            member: nodes[member] if entry is None else entry[1]
                            for member, entry in zip(members, chosen, strict=True)
                        },
                    )

    def _is_first(self, shown: Mapping[int, Label]) -> bool:
        """Whether no renaming of members gives a smaller description of the same."""
        own = self._by_stage(shown)
        for named in self._names:
            other = {named[member]: tuple(renamed(part, named) for part in label) for member, label in shown.items()}
            if self._by_stage(other) < own:
                return False
        return True

    def _by_stage(self, shown: Mapping[int, Label]) -> list[tuple[Any, ...]]:
        """One entry a stage, so that what comes first among whole descriptions comes first up to every stage."""
        stages = max(map(len, shown.values()))
        return [
            tuple(shown[member][stage : stage + 1] for member in self.world.honest if member in shown)
            for stage in range(stages)
        ]

    def invitations(self, node: Node, epoch: int, cohorts: Sequence[Set]) -> list[tuple[Label, Node]]:
        """The cohorts that a client joins an epoch with, and the client after each."""
        found = []
        for cohort in cohorts:
            after = node.tell(messages.Invitation(Offer(epoch, cohort, node.machine.head)))
            if after is not None and after.machine.plan is not None:
                found.append((cohort, after))
        return found

    def advertisements(
        self, node: Node, nodes: Mapping[int, Node], sets: Sequence[Set] = ()
    ) -> list[tuple[Label, Node]]:
        """The sets of advertisements, each in any version, that a client takes, and the client after each."""
        plan = node.machine.plan
        if plan is None:
            return []
        there = {
            member: [other.advertisement]
            for member, other in nodes.items()
            if other.machine.plan is not None and other.machine.plan.digest == plan.digest
        }
        for member in self.world.played:
            if member in plan.cohort:
                there[member] = [
                    self.world.seat(plan, member, version).advertisement for version in range(self.versions)
                ]
        found = []
        for chosen in sets or self.world.sets:
            if not set(chosen) <= set(there):
                continue
            for items in product(*(list(enumerate(there[member])) for member in chosen)):
                after = node.tell(messages.Advertisements(plan.digest, tuple(item for _, item in items)))
                if after is not None:
                    version = {member: number for member, (number, _) in zip(chosen, items, strict=True)}
                    found.append((tuple(sorted(version.items())), after))
        return found

    def deliveries(self, node: Node, nodes: Mapping[int, Node]) -> list[tuple[Label, Node]]:
        """The delivery of all seals for a client, and the client after it, prompt or late."""
        epoch = node.machine._epoch
        if epoch is None or epoch.seals is None:
            return []
        seals: dict[int, messages.Seal] = {}
        for member, other in nodes.items():
            for sent in other.story.sent if member != node.member else ():
                if isinstance(sent.message, messages.Seals) and sent.message.plan == epoch.plan.digest:
                    for item in sent.message.items:
                        if item.member == node.member:
                            seals[member] = item.sent_by(member)
        for (plan, member, _), seat in self.world.seats.items():
            if plan == epoch.plan.digest and epoch.advertised.get(member) == seat.advertisement:
                seals[member] = seat.seal(node.machine)
        others = [member for member in epoch.advertised if member != node.member]
        if not set(others) <= set(seals):
            return []
        message, found = messages.SealDelivery(epoch.plan.digest, tuple(seals[member] for member in others)), []
        for slow in (False, True) if self.late else (False,):
            after = node.tell(message, late=slow)
            if after is not None and after.chain:
                found.append((("late" if slow else "prompt",), after))
        return found

    # -- a step ---------------------------------------------

    def tellings(self, nodes: Mapping[int, Node], *, claims: int = 1) -> Iterator[tuple[Label, dict[int, Node]]]:
        """Every way to tell clients who survived the present step; all signatures obtained are handed on.

        Args:
            nodes: the clients; those that are in no step are left alone.
            claims: how many sets are told to one client, one after the other.
        """
        there = {member: node for member, node in nodes.items() if node.chain}
        menus = {member: self._claims(node, claims) for member, node in there.items()}
        choices: Iterable[tuple[tuple[Set, ...], ...]]
        if self.uniform:
            common = dict.fromkeys(claim for menu in menus.values() for claim in menu)
            choices = [tuple(claim for _ in there) for claim in common]
        else:
            choices = product(*menus.values())
        for chosen in choices:
            strategy = dict(zip(there, chosen, strict=True))
            yield tuple(sorted(strategy.items())), self.told(nodes, strategy)

    def told(self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]) -> dict[int, Node]:
        """The clients after these sets were told to them, and all signatures obtained were handed on."""
        signed = self._signatures(nodes, strategy)
        after = dict(nodes)
        for member, sets in strategy.items():
            after[member] = self._answer(nodes[member], sets, signed)
            if after[member].pending is not None:
                after[member] = self._computed(after[member])
        return after

    def signed(self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]) -> dict[int, Node]:
        """The clients after these sets were told to them, and all signatures of each one's last set handed on."""
        signed = self._signatures(nodes, strategy)
        after = dict(nodes)
        for member, sets in strategy.items():
            for survivors in sets[:-1]:
                after[member] = self._hear(after[member], survivors) or after[member]
            after[member] = self._answer(after[member], sets[-1:], signed)
        return after

    def _computed(self, node: Node) -> Node:
        place = (id(node), (), (), -1)
        if place not in self._answers:
            self._kept.append(node)
            self._answers[place] = node.compute()
        return self._answers[place] or node

    def _claims(self, node: Node, claims: int) -> list[tuple[Set, ...]]:
        useful = [one for one in self.world.sets if self._hear(node, one) is not None]
        found: list[tuple[Set, ...]] = []
        for count in range(1, claims + 1):
            found += [chosen for chosen in product(useful, repeat=count) if len(set(chosen)) == count]
        return found or [()]

    def _hear(self, node: Node, survivors: Set) -> Node | None:
        assert node.public is not None  # noqa: S101 - in a step
        return node.tell(messages.Survivors(node.public.plan.digest, node.public.step, survivors))

    def _signatures(
        self, nodes: Mapping[int, Node], strategy: Mapping[int, tuple[Set, ...]]
    ) -> dict[tuple[bytes, Set], dict[int, bytes]]:
        """The signatures over each set at each chain that this strategy obtains of honest clients."""
        found: dict[tuple[bytes, Set], dict[int, bytes]] = {}
        for member, told in strategy.items():
            node: Node | None = nodes[member]
            for survivors in told:
                after = self._hear(node, survivors) if node is not None else None
                if after is None:
                    continue
                node = after
                if isinstance(after.last, messages.SurvivorSignature):
                    found.setdefault((after.chain, survivors), {})[member] = after.last.signature
        return found

    def _answer(
        self, node: Node, told: tuple[Set, ...], signed: Mapping[tuple[bytes, Set], Mapping[int, bytes]]
    ) -> Node:
        """A client after it was told these sets, each with all signatures of it."""
        for survivors in told:
            signers = tuple(sorted(signed.get((node.chain, survivors), {})))
            place = (id(node), survivors, signers, 0)
            if place not in self._answers:
                self._kept.append(node)
                self._answers[place] = self._answered(node, survivors, signed.get((node.chain, survivors), {}))
            after = self._answers[place]
            node = node if after is None else after
        return node

    def _answered(self, node: Node, survivors: Set, signed: Mapping[int, bytes]) -> Node | None:
        after = self._hear(node, survivors)
        if after is None or after.public is None or not isinstance(after.last, messages.SurvivorSignature):
            return after
        statement = messages.survivor_statement(after.chain, after.public.step, survivors)
        items = {member: messages.SignedBy(member, signature) for member, signature in signed.items()}
        for member in self.world.played:
            if member in after.public.members:
                items[member] = messages.SignedBy(member, self.world.signers[member].sign("survivors", *statement))
        message = messages.SurvivorSignatures(
            after.public.plan.digest, after.public.step, tuple(items[member] for member in sorted(items))
        )
        return after.tell(message) or after

    # -- steps one after the other ---------------------------------------------

    def sequences(self, nodes: Mapping[int, Node], steps: int) -> Iterator[list[Node]]:
        """Every way through the steps that are left: after each step's last answer, the clients so far.

        Between steps each client is told a sum. With a colluder sums can be forged, and so histories part: into as many
        as there are clients, in every way. Without one all are told the true sum.
        """
        for _, after in self.tellings(nodes):
            clients = [after[member] for member in self.world.honest]
            yield clients
            if steps > 1:
                for lies in _parts(len(clients)) if self.world.played else [(0,) * len(clients)]:
                    onward = dict(after)
                    for node, lie in zip(clients, lies, strict=True):
                        onward[node.member] = self._published(node, lie)
                    yield from self.sequences(onward, steps - 1)

    def _published(self, node: Node, lie: int) -> Node:
        place = (id(node), (), (), lie)
        if place not in self._answers:
            self._kept.append(node)
            epoch = node.machine._epoch
            if epoch is None or epoch.step is None or epoch.public is None:
                return node
            members = epoch.step.survivors or epoch.public.members
            self._answers[place] = node.tell(*self.world.published(node.machine, members, lie))
        return self._answers[place] or node


def _parts(count: int) -> Iterator[tuple[int, ...]]:
    """All ways to part so many clients, each as a number for each client, the first numbers first."""
    if count == 0:
        yield ()
        return
    for head in _parts(count - 1):
        for number in range(max(head, default=-1) + 2):
            yield (*head, number)


def renamed(part: Any, named: Mapping[int, int]) -> Any:
    """A label with other names: tuples of members, of (member, version), or of words."""
    if part and isinstance(part[0], str):
        return part
    if part and isinstance(part[0], tuple):
        return tuple(sorted((named[member], version) for member, version in part))
    return tuple(sorted(named[member] for member in part))
