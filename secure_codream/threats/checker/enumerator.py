"""What a resilient step gives away, without any cryptography: every way of dividing it among the clients, counted.

The model checker drives real machines, and is slow from five members on. Here a client is what it was told and the
shares it gives for that, so six members and every threshold take seconds. Two results come out of it, which the model
checker confirms on the machines where it reaches:

- if everybody masks for the same members (the set-up is all or nothing), a step opens one sum, over a set that may be
  summed, exactly when 2 threshold > n + c, n being those whose shares were dealt;
- if a server may announce different members to different clients and dropped ones answer too, that is not enough.

**What is known.** An honest member j has at a step a self mask b_j and a mask key s_j. Each honest client gives one
kind of share of each member: of b_j if j is in the set S it was told, else of s_j. Those told a smaller set than
everybody answer only where `threshold` members signed the very set. With the colluders' shares, `threshold` of a kind
open it. Clients with different chains (a view: the members that they were told, and a history) share no masks.
A combination of inputs can be read if it has every mask known or cancelled: coefficients are 0 where b_i is unknown,
and equal for i and j of a view unless s_i or s_j is known; for i and j of different views each is 0 on its own,
unless s_i or s_j is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

Set = tuple[int, ...]
PRIME = (1 << 61) - 1  # in place of the rationals: a rank may only be smaller by chance, and all here are tiny

# -- linear algebra ---------------------------------------------


def reduced(rows: Iterable[Sequence[int]]) -> list[list[int]]:
    """The reduced echelon form of a matrix modulo `PRIME`, without its zero rows."""
    basis: list[tuple[int, list[int]]] = []  # (pivot column, row), each reduced by all others
    for given in rows:
        row = [entry % PRIME for entry in given]
        for pivot, other in basis:
            if factor := row[pivot]:
                row = [(a - factor * b) % PRIME for a, b in zip(row, other, strict=True)]
        lead = next((column for column, entry in enumerate(row) if entry), None)
        if lead is None:
            continue
        scale = pow(row[lead], -1, PRIME)
        row = [entry * scale % PRIME for entry in row]
        basis = [
            (pivot, [(a - other[lead] * b) % PRIME for a, b in zip(other, row, strict=True)] if other[lead] else other)
            for pivot, other in basis
        ]
        basis.append((lead, row))
    return [row for _, row in sorted(basis)]


def cancelling(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """A basis of the combinations of these rows that are zero, in reduced echelon form."""
    count, width = len(rows), len(rows[0]) if rows else 0
    wide = [[*row, *(int(place == number) for place in range(count))] for number, row in enumerate(rows)]
    return reduced(row[width:] for row in reduced(wide) if not any(row[:width]))


def readable(sums: Iterable[Collection[int]], honest: Sequence[int]) -> list[list[int]]:
    """A basis of all combinations of honest inputs that can be read off these sums, colluders' inputs taken away."""
    return reduced([int(member in summed) for member in honest] for summed in sums)


def isolated(sums: Iterable[Collection[int]], honest: Sequence[int]) -> list[int]:
    """Honest members whose own input is a combination of these sums."""
    # A unit vector lies in a space exactly if it is a row of its reduced echelon form.
    rows = readable(sums, honest)
    return [honest[row.index(1)] for row in rows if sum(map(bool, row)) == 1]


def constant_on(rows: Iterable[Sequence[int]], honest: Sequence[int], blocks: Iterable[Collection[int]]) -> bool:
    """Whether all these combinations treat the honest members of each block alike."""
    places = [[place for place, member in enumerate(honest) if member in block] for block in blocks]
    return all(len({row[place] for place in part}) <= 1 for row in rows for part in places)


# -- a resilient step ---------------------------------------------


@dataclass(frozen=True)
class Step:
    """A cohort at one step.

    Attributes:
        members: n; shares were dealt to all of them.
        colluders: c; the last ones, unless `colluding` says who.
        threshold: how many shares open a secret.
        least: the smallest set that is summed.
        blocks: sets are unions of these; None for any sets.
        split: whether the members of the epoch may be told differently to different clients.
        agreed: whether shares of a smaller set leave only with signatures of it.
        colluding: who colludes.
    """

    members: int
    colluders: int
    threshold: int
    least: int
    blocks: tuple[Set, ...] | None = None
    split: bool = False
    agreed: bool = True
    colluding: Set | None = None

    @property
    def everybody(self) -> Set:
        """All members."""
        return tuple(range(self.members))

    @property
    def honest(self) -> Set:
        """Those who do not collude."""
        others = self.colluding or self.everybody[self.members - self.colluders :]
        return tuple(member for member in self.everybody if member not in others)

    def sets(self, least: int, among: Collection[int] | None = None) -> list[Set]:
        """Sets of at least so many members that may be summed, the largest first."""
        parts = self.blocks or tuple((member,) for member in self.everybody)
        found = [
            tuple(sorted(member for part in chosen for member in part))
            for size in range(1, len(parts) + 1)
            for chosen in combinations(parts, size)
        ]
        inside = set(self.everybody if among is None else among)
        return sorted((one for one in found if len(one) >= least and inside.issuperset(one)), key=len, reverse=True)


@dataclass(frozen=True)
class View:
    """Honest clients with one chain: who the epoch's members are to them, and what each of them is told.

    Attributes:
        members: of the epoch, as these clients were told.
        told: client -> the set it is told; None if it is told nothing.
    """

    members: Set
    told: tuple[tuple[int, Set | None], ...]


Strategy = tuple[View, ...]


@dataclass(frozen=True)
class Found:
    """What trying strategies brought: how many, and the first that breaks the promise with the sets that it opens."""

    tried: int
    strategy: Strategy | None = None
    opened: tuple[Set, ...] = ()


def opened(step: Step, strategy: Strategy) -> tuple[Set, ...]:
    """The honest members of each sum that this strategy opens."""
    holders = step.members - len(step.honest)
    self_masks, mask_keys = dict.fromkeys(step.honest, holders), dict.fromkeys(step.honest, holders)
    for view in strategy:
        for _, told in view.told:
            if told is None or not _answered(step, view, told):
                continue
            for owner in view.members:
                if owner in self_masks:
                    (self_masks if owner in told else mask_keys)[owner] += 1
    known = {member for member, count in self_masks.items() if count >= step.threshold}
    lifted = {member for member, count in mask_keys.items() if count >= step.threshold}
    found: list[Set] = []
    for view in strategy:
        here = {client for client, _ in view.told}
        bare = [client for client in here if client in lifted]  # no pair mask of theirs is left
        bound = [client for client in here if client not in lifted]
        # Who is not in the view, or is not there at all, holds the other end of a mask that stays, unless it is lifted.
        tied = any(one in step.honest and one not in here and one not in lifted for one in view.members)
        found += [(client,) for client in bare if client in known]
        if bound and not tied and known.issuperset(bound):
            found.append(tuple(sorted(bound)))
    return tuple(sorted(found))


def _answered(step: Step, view: View, told: Set) -> bool:
    """Whether shares leave for this set: at once for everybody, else with enough signatures."""
    if told == view.members or not step.agreed:
        return True
    signers = sum(other == told for _, other in view.told)
    return signers + step.members - len(step.honest) >= step.threshold


def breaks(step: Step, sums: Sequence[Set]) -> bool:
    """Whether this is more than one sum, or one over honest members who are not those of a set that may be summed."""
    return len(sums) > 1 or any(one not in _allowed(step) for one in sums)


@lru_cache(None)
def _allowed(step: Step) -> frozenset[Set]:
    honest = set(step.honest)
    return frozenset(tuple(sorted(honest.intersection(one))) for one in step.sets(step.least))


def strategies(step: Step) -> Iterator[Strategy]:
    """Every strategy, those left out that only rename clients who hold equal shares, or that ask fewer clients.

    Who is told nothing gives nothing, and whatever a server knows it still knows if it is told more: so everybody is
    told something, except where it would be refused.
    """
    for parts in _partitions(step.honest):
        announced = [
            [one for one in step.sets(step.threshold) if set(part) <= set(one)] if step.split else [step.everybody]
            for part in parts
        ]
        for members in product(*announced):
            told = [_tellings(step, part, inside) for part, inside in zip(parts, members, strict=True)]
            for chosen in product(*told):
                yield tuple(View(inside, sets) for inside, sets in zip(members, chosen, strict=True))


@lru_cache(None)
def _tellings(step: Step, part: Set, members: Set) -> tuple[tuple[tuple[int, Set | None], ...], ...]:
    """What the clients of one view can be told."""
    needed = step.threshold - (step.members - len(step.honest)) if step.agreed else 1
    others = [one for one in step.sets(step.least, members) if one != members]
    found: dict[tuple[tuple[int, Set | None], ...], None] = {}
    # All clients of a view hold a share of each of its members, so only how many are told a set matters. Where too few
    # are told a smaller set nobody answers, and telling them everybody gives more.
    for counts in _counts(len(part), len(others), max(1, needed)):
        told = [one for one, count in zip(others, counts, strict=True) for _ in range(count)]
        told += [members] * (len(part) - len(told))
        found[tuple(zip(part, told, strict=True))] = None
    return tuple(found)


def _counts(total: int, places: int, least: int) -> Iterator[tuple[int, ...]]:
    """All ways to spread at most `total` over so many places, none or at least `least` in each."""
    for groups in range(total // least + 1):
        for chosen in combinations(range(places), groups):
            for sizes in product(range(least, total + 1), repeat=groups):
                if sum(sizes) <= total:
                    counts = [0] * places
                    for place, size in zip(chosen, sizes, strict=True):
                        counts[place] = size
                    yield tuple(counts)


def _partitions(items: Set) -> Iterator[tuple[Set, ...]]:
    if not items:
        yield ()
        return
    first, rest = items[0], items[1:]
    for parts in _partitions(rest):
        yield ((first,), *parts)
        for place, part in enumerate(parts):
            yield (*parts[:place], (first, *part), *parts[place + 1 :])


def search(step: Step) -> Found:
    """Try strategies until one breaks the promise, or all have been tried."""
    tried = 0
    for strategy in strategies(step):
        tried += 1
        sums = opened(step, strategy)
        if breaks(step, sums):
            return Found(tried, strategy, sums)
    return Found(tried)
