"""A model checker: every strategy of a malicious server in one step, against the real client machines.

Setting. n members, all of them in the epoch; the last c collude with the server and reveal all they hold: their keys,
their shares of everybody's secrets, and their signatures over anything. All honest members have masked their inputs.

Strategy. For each honest member, what the server claims to it: nothing, or one set of survivors (the whole epoch: the
fast path), or with `claims=2` two sets one after the other. Every non-empty set of members is tried on the real
machine; it decides what it takes. Then the server forwards, for each claimed set, all signatures that this strategy
obtains: of the colluders in it and of the honest members that signed it. What the machines answer is cached for each
(member, claims, signers); each answered row is compared with the true shares to learn which kind it is.

"Can be rebuilt". A secret (self-mask seed b_j or mask key sk_j) is known from `threshold` shares, the colluders' own
included; colluders' secrets are known. A combination of the honest masked inputs y_i shows a combination of inputs
if every mask in it is known or cancels: with coefficients a_i, a_i = 0 where b_i is unknown, and a_i = a_j where the
pairwise mask of i and j is unknown, that is where neither sk_i nor sk_j is known. So what can be rebuilt is spanned
by the sums over the connected components of "pairwise mask unknown" in which all b_i are known. The promise: at
most one such sum, over at least least_survivors - c honest inputs. `Leak` reports a strategy that breaks it, and
`confirm` runs that strategy with real Shamir combinations and real mask removal down to the plain sum.

Symmetry. The rules treat all honest members alike, so renaming them turns a strategy into one with the same outcome;
with `by_symmetry` only those are tried in which the sizes of the claimed sets ascend with the members' numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product

from codream_protocols.client import ClientProtocol, Effect, Send
from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.keyschedule import KEY_BYTES
from codream_protocols.messages import (
    SignedBy,
    Survivors,
    SurvivorSignature,
    SurvivorSignatures,
    UnmaskShares,
    survivor_statement,
)
from codream_protocols.plan import Policy
from codream_protocols.secret import SecretArray
from secure_codream.threats import adversary
from secure_codream.threats.attack import Defences
from secure_codream.threats.federation import Federation
from secure_codream.threats.switches import switched_off

Set = tuple[int, ...]
Strategy = dict[int, tuple[Set, ...]]  # honest member -> the sets claimed to it, in order
Rows = tuple[frozenset[int], frozenset[int]]  # whose self-mask share, and whose mask-key share, a member gave

SELF_MASK, MASK_KEY = 0, 1


@dataclass(frozen=True)
class Opened:
    """What a strategy lets the server rebuild: sums over these honest members, self-mask seeds and mask keys."""

    sums: tuple[Set, ...]
    self_masks: frozenset[int]
    mask_keys: frozenset[int]


@dataclass(frozen=True)
class Leak:
    """A strategy that breaks the promise, and what it opens."""

    strategy: Strategy
    opened: Opened

    @property
    def sums(self) -> tuple[Set, ...]:
        """The honest members in each sum that can be rebuilt."""
        return self.opened.sums


@dataclass(frozen=True)
class Search:
    """What trying strategies found.

    Attributes:
        strategies: how many were tried; all, unless one leaked.
        most_sums: the largest number of sums that one of them opens.
        fewest_inputs: the smallest number of honest inputs in a sum that one of them opens; 0 if none opens any.
        leak: the first that breaks the promise, if any.
    """

    strategies: int
    most_sums: int
    fewest_inputs: int
    leak: Leak | None


class Checker:
    """All strategies against one setting.

    Args:
        members: n.
        colluders: c.
        threshold: of the shares.
        least: the smallest number of survivors, in the plan.
        client_class: the honest members' machine.
        claims: most sets that the server claims to one member.
        by_symmetry: try one of the strategies that differ in honest members' names alone, or a few, instead of all.
        unsafe: let plans pass that both sides refuse otherwise.
    """

    def __init__(
        self,
        members: int,
        colluders: int,
        threshold: int,
        least: int,
        client_class: type[ClientProtocol] = ClientProtocol,
        claims: int = 1,
        *,
        by_symmetry: bool = False,
        unsafe: bool = False,
    ) -> None:
        policy = Policy(least_cohort=1, least_survivors=1, colluders=0, tasks={"update": 1.0})
        with switched_off(Defences(frozenset({"plan-check"} if unsafe else ()))):
            self.federation = Federation(
                members,
                threshold=threshold,
                colluders=colluders,
                least_survivors=least,
                client_class=client_class,
                policy=policy,
                steps=1,
            ).masked()
        self.everyone = tuple(range(members))
        self.honest = self.everyone[: members - colluders]
        self.colluding = self.everyone[members - colluders :]
        self.threshold, self.least, self.claims, self.by_symmetry = threshold, least, claims, by_symmetry
        self.plan = self.federation.plan.digest
        self.true_shares = {  # (holder, owner) -> its self-mask share, its mask-key share
            (holder, owner): (shares.row(0), shares.row(1))
            for holder in self.everyone
            for owner, shares in self._held(holder).items()
        }
        self.first = lru_cache(None)(self._first)
        self.answers = lru_cache(None)(self._answers)
        self.rows = lru_cache(None)(self._rows)
        self.rebuilt = lru_cache(None)(self._rebuilt)

    def _held(self, holder: int) -> dict[int, SecretArray]:
        epoch = self.federation.clients[holder]._epoch
        if epoch is None:
            raise LocalProtocolError(f"member {holder} without an epoch", "members that have masked their inputs")
        return epoch.held

    # -- the real machines ---------------------------------------------

    def _first(self, member: int, claims: tuple[Set, ...]) -> dict[Set, bytes]:
        """Which of the claimed sets a member signs, and its signatures."""
        machine = copy.deepcopy(self.federation.clients[member])
        signed = {}
        for survivors in claims:
            try:
                answer = _sent(machine.receive(Survivors(self.plan, 0, survivors)))
            except RemoteProtocolError:
                continue
            if isinstance(answer, SurvivorSignature):
                signed[survivors] = answer.signature
        return signed

    def _answers(self, member: int, claims: tuple[Set, ...], signers: tuple[Set, ...]) -> tuple[bytes, ...]:
        """The shares that a member gives, when it gets these members' signatures over the sets claimed to it."""
        machine = copy.deepcopy(self.federation.clients[member])
        given = []
        for forwarding in (False, True):  # first every claim, then again with the signatures
            for survivors, signed_by in zip(claims, signers, strict=True):
                try:
                    answer = _sent(machine.receive(Survivors(self.plan, 0, survivors)))
                    if isinstance(answer, SurvivorSignature) and forwarding:
                        signatures = tuple(SignedBy(other, self.signature(other, survivors)) for other in signed_by)
                        answer = _sent(machine.receive(SurvivorSignatures(self.plan, 0, signatures)))
                except (RemoteProtocolError, LocalProtocolError):  # refused, or erased
                    continue
                if isinstance(answer, UnmaskShares):
                    given.append(answer.shares)
        return tuple(dict.fromkeys(given))

    def signature(self, member: int, survivors: Set) -> bytes:
        """A member's signature over a set: a colluder's for the asking, an honest one's from its machine."""
        if member in self.colluding:
            return self.federation.signers[member].sign(
                "survivors", *survivor_statement(self.federation.server._transcript(), 0, survivors)
            )
        return self.first(member, (survivors,))[survivors]

    def _given(self, member: int, claims: tuple[Set, ...], signers: tuple[Set, ...]) -> Iterator[tuple[int, int]]:
        """(owner, kind) of each true share among a member's answers."""
        for shares in self.answers(member, claims, signers):
            for owner in self.everyone:
                row = shares[KEY_BYTES * owner : KEY_BYTES * (owner + 1)]
                for kind in (SELF_MASK, MASK_KEY):
                    if row == self.true_shares[member, owner][kind]:
                        yield owner, kind

    def _rows(self, member: int, claims: tuple[Set, ...], signers: tuple[Set, ...]) -> Rows:
        """Which kind of share a member really gave, for whom."""
        given = set(self._given(member, claims, signers))
        self_masks, mask_keys = (
            frozenset(owner for owner, found in given if found == kind) for kind in (SELF_MASK, MASK_KEY)
        )
        return self_masks, mask_keys

    # -- strategies ---------------------------------------------

    def choices(self, member: int) -> list[tuple[Set, ...]]:
        """What can be claimed to a member with any effect; nothing at all comes first."""
        sets = [chosen for size in range(1, len(self.everyone) + 1) for chosen in combinations(self.everyone, size)]
        useful = []
        for survivors in sets:
            signed = self.first(member, (survivors,))
            if signed or self.answers(member, (survivors,), ((),)):
                useful.append(survivors)
        found: list[tuple[Set, ...]] = [()]
        for count in range(1, self.claims + 1):
            found += [pair for pair in product(useful, repeat=count) if len(set(pair)) == count]
        return found

    def strategies(self) -> Iterator[Strategy]:
        """Every strategy, or one or a few of those that honest members' names alone distinguish."""
        choices = [self.choices(member) for member in self.honest]
        for chosen in _ascending(choices) if self.by_symmetry else product(*choices):
            yield dict(zip(self.honest, chosen, strict=True))

    def forwarded(self, strategy: Strategy) -> dict[int, tuple[Set, ...]]:
        """For each honest member and each set claimed to it, whose signatures the server can forward."""
        signed: dict[Set, list[int]] = {}
        for member, claims in strategy.items():
            for survivors in self.first(member, claims):
                signed.setdefault(survivors, []).append(member)
        available = {
            survivors: tuple(sorted([*members, *(set(self.colluding) & set(survivors))]))
            for survivors, members in signed.items()
        }
        return {member: tuple(available.get(told, ()) for told in claims) for member, claims in strategy.items()}

    def opened(self, strategy: Strategy) -> Opened:
        """What a strategy lets the server rebuild."""
        counts = ([len(self.colluding)] * len(self.everyone), [len(self.colluding)] * len(self.everyone))
        signers = self.forwarded(strategy)
        for member, claims in strategy.items():
            if claims:
                for count, owners in zip(counts, self.rows(member, claims, signers[member]), strict=True):
                    for owner in owners:
                        count[owner] += 1
        return self.rebuilt(tuple(counts[SELF_MASK]), tuple(counts[MASK_KEY]))

    def _rebuilt(self, *counts: tuple[int, ...]) -> Opened:
        """What so many shares of each member's self-mask seed, and of its mask key, open."""
        self_masks, mask_keys = (
            frozenset(owner for owner in self.everyone if count[owner] >= self.threshold or owner in self.colluding)
            for count in counts
        )
        clique = tuple(member for member in self.honest if member not in mask_keys)
        components = [clique] if clique else []
        components += [(member,) for member in self.honest if member in mask_keys]
        sums = tuple(component for component in components if self_masks.issuperset(component))
        return Opened(sums, self_masks, mask_keys)

    def breaks(self, opened: Opened) -> bool:
        """Whether this is more than one sum, or one over too few."""
        least = self.least - len(self.colluding)
        return len(opened.sums) > 1 or any(len(component) < least for component in opened.sums)

    def outcome(self, strategy: Strategy) -> Leak | None:
        """The leak that a strategy makes, if any."""
        opened = self.opened(strategy)
        return Leak(strategy, opened) if self.breaks(opened) else None

    def run(self) -> Search:
        """Try strategies until one leaks, or all have been tried."""
        tried = most = fewest = 0
        for strategy in self.strategies():
            opened = self.opened(strategy)
            tried += 1
            if opened.sums:
                smallest = min(map(len, opened.sums))
                most, fewest = max(most, len(opened.sums)), min(fewest or smallest, smallest)
            if self.breaks(opened):
                return Search(tried, most, fewest, Leak(strategy, opened))
        return Search(tried, most, fewest, None)

    def search(self) -> Leak | None:
        """The first strategy that leaks; None when all have been tried in vain."""
        return self.run().leak

    # -- for real ---------------------------------------------

    def confirm(self, leak: Leak) -> bool:
        """Run a strategy for real: combine the shares, take the masks off, compare with the plain sums.

        Returns:
            Whether each rebuilt secret is the advertised one, and each opened sum is the plain sum.
        """
        signers = self.forwarded(leak.strategy)
        given: dict[tuple[int, int], dict[int, bytes]] = {}  # (owner, kind) -> holder -> share
        for owner in self.everyone:
            for kind in (SELF_MASK, MASK_KEY):
                given[owner, kind] = {holder: self.true_shares[holder, owner][kind] for holder in self.colluding}
        for member, claims in leak.strategy.items():
            for owner, kind in self._given(member, claims, signers[member]):
                given[owner, kind][member] = self.true_shares[member, owner][kind]
        secrets = {
            what: adversary.combine(shares, self.threshold)
            for what, shares in given.items()
            if len(shares) >= self.threshold
        }
        for (owner, kind), secret in secrets.items():
            check = adversary.is_self_mask if kind == SELF_MASK else adversary.is_mask_key
            if not check(self.federation, owner, 0, secret):
                return False
        self_masks = {owner: secret for (owner, kind), secret in secrets.items() if kind == SELF_MASK}
        mask_keys = {owner: secret for (owner, kind), secret in secrets.items() if kind == MASK_KEY}
        for member in self.colluding:  # a colluder reveals its own
            mask_keys[member] = self.colluders_mask_key(member)
        return all(self._opens(component, self_masks, mask_keys) for component in leak.sums)

    def _opens(self, component: Set, self_masks: dict[int, bytes], mask_keys: dict[int, bytes]) -> bool:
        opened = adversary.open_sum(self.federation, 0, component, self_masks, mask_keys)
        return bool((opened == self.federation.plain_sum(0, component)).all())

    def colluders_mask_key(self, member: int) -> bytes:
        """A colluder's own mask key; here rebuilt from all shares, in life it simply keeps it."""
        shares = {holder: self.true_shares[holder, member][MASK_KEY] for holder in self.everyone}
        return adversary.combine(shares, self.threshold)


def safe(members: int, colluders: int, threshold: int) -> bool:
    """The threshold rule."""
    return 2 * threshold > members + colluders


def told(leak: Leak) -> str:
    """The server's strategy in words: whom it tells what, and what it opens."""
    groups: dict[tuple[Set, ...], list[int]] = {}
    for member, claims in leak.strategy.items():
        groups.setdefault(claims, []).append(member)
    parts = []
    for claims, members in groups.items():
        if claims:
            parts.append(f"{_listed(members)} that {' and then that '.join(_braced(told) for told in claims)} survived")
    silent = groups.get((), [])
    text = f"tells {'; '.join(parts)}" if parts else "needs no answer: colluders hold enough shares"
    if silent and parts:
        text += f"; asks {_listed(silent)} nothing"
    opened = leak.opened
    sums = " and ".join("+".join(f"x{member}" for member in component) for component in leak.sums)
    return (
        f"{text}. It rebuilds the self masks of {_braced(sorted(opened.self_masks))} and the mask keys of "
        f"{_braced(sorted(opened.mask_keys))}, and opens {sums}"
    )


def _listed(members: Collection[int]) -> str:
    return ", ".join(map(str, members))


def _braced(members: Collection[int]) -> str:
    return "{" + _listed(members) + "}"


def _sent(effects: Sequence[Effect]) -> object:
    """The message of the one effect that survivors and signatures lead to."""
    (effect,) = effects
    return effect.message if isinstance(effect, Send) else None


def _ascending(choices: list[list[tuple[Set, ...]]]) -> Iterator[tuple[tuple[Set, ...], ...]]:
    """One choice for each member, the sizes of what is claimed ascending from member to member."""
    by_sizes: list[dict[tuple[int, ...], list[tuple[Set, ...]]]] = []
    for options in choices:
        grouped: dict[tuple[int, ...], list[tuple[Set, ...]]] = {}
        for claims in options:
            grouped.setdefault(tuple(map(len, claims)), []).append(claims)
        by_sizes.append(grouped)
    for sizes in combinations_with_replacement(
        sorted({size for grouped in by_sizes for size in grouped}), len(choices)
    ):
        yield from product(*(grouped.get(size, []) for grouped, size in zip(by_sizes, sizes, strict=True)))
