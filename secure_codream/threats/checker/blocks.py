"""Whatever sums a server gets past the clients' own checks, blocks keep their members apart from nobody.

A server proposes sets without end: any sets, blocks with one member more or less, the difference or the union of what
went through before. What a real client's rules let pass is taken as summed and known exactly, with all colluders' own
inputs; then linear algebra says what can be told apart. The same for charters that follow one another, where `cuts` has
to name every one after which a member, or fewer than are promised, could be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from codream_protocols.charter import Offer, cuts, derive_plan
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import RemoteProtocolError
from secure_codream.threats.checker.enumerator import Set, constant_on, isolated, readable
from secure_codream.threats.checker.world import Setting, World


@dataclass(frozen=True)
class Sums:
    """What one server got summed, and of which honest members it has the input; `told_apart` within a block."""

    blocks: tuple[Set, ...]
    sums: tuple[Set, ...]
    isolated: tuple[int, ...]
    told_apart: bool


def random_blocks(random: Random, members: int, least: int) -> tuple[Set, ...]:
    """A partition into blocks of at least so many, its members drawn."""
    names = list(range(members))
    random.shuffle(names)
    found: list[Set] = []
    while len(names) >= 2 * least:
        size = random.randint(least, len(names) - least)
        found.append(tuple(sorted(names[:size])))
        names = names[size:]
    return (*found, tuple(sorted(names)))


class Federation:
    """One roster and charter, and a real client of each member, whose rules are asked; colluders are drawn.

    Args:
        random: of all that is drawn.
        losses: of the charter.
        client_class: the clients' machine.
    """

    def __init__(
        self, random: Random, losses: str = "blocks", client_class: type[ClientProtocol] = ClientProtocol
    ) -> None:
        self._random = random
        members, colluders = random.choice([(6, 1), (7, 1), (8, 2), (9, 1), (10, 1), (11, 2), (12, 1), (12, 2)])
        blocks = random_blocks(random, members, colluders + 2)
        setting = Setting(
            "resilient",
            members,
            colluders,
            playing=0,
            losses="allow" if losses == "allow" else "blocks",
            blocks=blocks,
        )
        self.world = World(setting, client_class)
        self.clients = [self.world.start(member) for member in self.world.everybody]
        offer = Offer(0, self.world.everybody, self.world.charter.first_head)
        self._plan = derive_plan(self.world.charter, self.world.course, offer, 0)
        colluding = random.sample(self.world.everybody, random.randint(0, colluders))
        self.honest = [member for member in self.world.everybody if member not in colluding]

    def attack(self, proposals: int) -> Sums:
        """Propose so many sets."""
        summed: list[Set] = []
        for _ in range(proposals):
            proposed = self._proposal(summed)
            if proposed and proposed not in summed and self.passes(proposed):
                summed.append(proposed)
        blocks = self.world.charter.blocks
        rows = readable(summed, self.honest)
        alone = tuple(isolated(summed, self.honest))
        return Sums(blocks, tuple(summed), alone, not constant_on(rows, self.honest, blocks))

    def passes(self, proposed: Set) -> bool:
        """Whether every honest client that is to be summed would let this set be: as a cohort, and as survivors."""
        try:
            for member in proposed:
                if member in self.honest:
                    self.clients[member]._rule_whole_blocks(proposed)
                    self.clients[member]._rule_enough_survivors(self._plan, proposed)
        except RemoteProtocolError:
            return False
        return True

    def _proposal(self, summed: Sequence[Set]) -> Set:
        random, everybody = self._random, self.world.everybody
        draw = random.random()
        blocks = self.world.charter.blocks
        chosen: set[int] = set()
        if draw < 0.3:
            chosen.update(random.sample(everybody, random.randint(3, len(everybody))))
        elif draw < 0.7 or len(summed) < 2:
            for block in random.sample(blocks, random.randint(1, len(blocks))):
                chosen.update(block)
            if random.random() < 0.4:
                chosen.symmetric_difference_update(random.sample(everybody, random.randint(1, 2)))
        else:
            first, second = (set(one) for one in random.sample(summed, 2))
            chosen = random.choice((first | second, first ^ second, first - second, first & second))
        return tuple(sorted(chosen))


@dataclass(frozen=True)
class Succession:
    """Charters one after the other, over the same data sets: what `cuts` says of the last, and what is told apart."""

    charters: tuple[tuple[Set, ...], ...]
    cut: tuple[Set, ...]
    isolated: tuple[int, ...]
    fewest: int  # honest members who are told apart from all others, but not from each other; 0 for none


def successions(random: Random, count: int, least: int = 3) -> Iterator[Succession]:
    """Random charters that follow one another: sites join and leave, blocks are drawn anew, or left as they are."""
    for _ in range(count):
        members = list(range(random.randint(least, 9)))
        charters = [random_blocks(random, len(members), least)]
        names = len(members)
        for _ in range(random.randint(1, 3)):
            blocks = [list(block) for block in charters[-1]]
            draw = random.random()
            if draw < 0.35:  # new sites as a block of their own
                size = random.randint(least, least + 1)
                blocks.append(list(range(names, names + size)))
                names += size
            elif draw < 0.55:  # one site joins a block
                random.choice(blocks).append(names)
                names += 1
            elif draw < 0.75:  # one leaves
                block = random.choice(blocks)
                block.pop(random.randrange(len(block)))
            elif draw < 0.9:  # drawn anew
                everybody = [one for block in blocks for one in block]
                random.shuffle(everybody)
                blocks = [[everybody[one] for one in part] for part in random_blocks(random, len(everybody), least)]
            else:  # two blocks become one
                blocks = [[one for block in blocks[:2] for one in block], *blocks[2:]]
            charters.append(tuple(tuple(sorted(block)) for block in blocks if len(block) >= least))
            if not charters[-1]:
                charters.pop()
        yield judge(tuple(charters), least, random)


def judge(charters: tuple[tuple[Set, ...], ...], least: int, random: Random) -> Succession:
    """What the sums of all these charters' blocks tell apart, and what `cuts` says of the last charter."""
    answered = [block for charter in charters[:-1] for block in charter]
    sums = [*answered, *charters[-1]]
    everybody = sorted({one for block in sums for one in block})
    colluding = random.sample(everybody, least - 2)
    honest = [one for one in everybody if one not in colluding]
    rows = readable(sums, honest)
    cut = tuple(cuts(answered, charters[-1], least))
    return Succession(charters, cut, tuple(isolated(sums, honest)), _fewest(rows, honest))


def _fewest(rows: Sequence[Sequence[int]], honest: Collection[int]) -> int:
    """The size of the smallest readable combination that is a plain sum over a set."""
    sizes = [sum(map(bool, row)) for row in rows if set(row) <= {0, 1}]
    return min(sizes, default=0)
