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
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import pytest

from codream_protocols import client as client_module
from codream_protocols import server as server_module
from codream_protocols.client import ClientProtocol
from codream_protocols.errors import LocalProtocolError, RemoteProtocolError
from codream_protocols.messages import SignedBy, Survivors, SurvivorSignature, SurvivorSignatures, survivor_statement
from codream_protocols.plan import Policy
from tests.protocols import adversary
from tests.protocols.federation import Federation

Set = tuple[int, ...]
Strategy = dict[int, tuple[Set, ...]]  # honest member -> the sets claimed to it, in order
Rows = tuple[frozenset[int], frozenset[int]]  # whose self-mask share, and whose mask-key share, a member gave


@dataclass(frozen=True)
class Leak:
    """A strategy that breaks the promise, and the sums that it opens."""

    strategy: Strategy
    sums: tuple[Set, ...]
    self_masks: frozenset[int]
    mask_keys: frozenset[int]


def without(*rules: str) -> type[ClientProtocol]:
    """A client with these rules taken out."""
    assert all(callable(getattr(ClientProtocol, rule)) for rule in rules)
    return type("Without" + "And".join(rules), (ClientProtocol,), dict.fromkeys(rules, lambda self, *arguments: None))


class Checker:
    """All strategies against one setting.

    Args:
        members: n.
        colluders: c.
        threshold: of the shares.
        least: the smallest number of survivors, in the plan.
        client_class: the honest members' machine.
        claims: most sets that the server claims to one member.
    """

    def __init__(
        self,
        members: int,
        colluders: int,
        threshold: int,
        least: int,
        client_class: type[ClientProtocol] = ClientProtocol,
        claims: int = 1,
    ) -> None:
        policy = Policy(least_cohort=1, least_survivors=1, colluders=0, tasks={"update": 1.0})
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
        self.threshold, self.least, self.claims = threshold, least, claims
        self.plan = self.federation.plan.digest
        epochs = [client._epoch for client in self.federation.clients]
        self.true_shares = {  # (holder, owner) -> its self-mask share, its mask-key share
            (holder, owner): (epochs[holder].held[owner].row(0), epochs[holder].held[owner].row(1))
            for holder in self.everyone
            for owner in self.everyone
        }
        self.first = lru_cache(None)(self._first)
        self.answers = lru_cache(None)(self._answers)
        self.rows = lru_cache(None)(self._rows)

    # -- the real machines ---------------------------------------------

    def _first(self, member: int, claims: tuple[Set, ...]) -> dict[Set, bytes]:
        """Which of the claimed sets a member signs, and its signatures."""
        machine = copy.deepcopy(self.federation.clients[member])
        signed = {}
        for survivors in claims:
            try:
                (effect,) = machine.receive(Survivors(self.plan, 0, survivors))
            except RemoteProtocolError:
                continue
            if isinstance(effect.message, SurvivorSignature):
                signed[survivors] = effect.message.signature
        return signed

    def _answers(self, member: int, claims: tuple[Set, ...], signers: tuple[Set, ...]) -> tuple[bytes, ...]:
        """The shares that a member gives, when it gets these members' signatures over the sets claimed to it."""
        machine = copy.deepcopy(self.federation.clients[member])
        given = []
        for forwarding in (False, True):  # first every claim, then again with the signatures
            for survivors, signed_by in zip(claims, signers, strict=True):
                try:
                    (effect,) = machine.receive(Survivors(self.plan, 0, survivors))
                    if isinstance(effect.message, SurvivorSignature) and forwarding:
                        signatures = tuple(SignedBy(other, self.signature(other, survivors)) for other in signed_by)
                        (effect,) = machine.receive(SurvivorSignatures(self.plan, 0, signatures))
                except (RemoteProtocolError, LocalProtocolError):  # refused, or erased
                    continue
                if not isinstance(effect.message, SurvivorSignature):
                    given.append(effect.message.shares)
        return tuple(dict.fromkeys(given))

    def signature(self, member: int, survivors: Set) -> bytes:
        """A member's signature over a set: a colluder's for the asking, an honest one's from its machine."""
        if member in self.colluding:
            return self.federation.signers[member].sign(
                "survivors", *survivor_statement(self.federation.server._transcript(), 0, survivors)
            )
        return self.first(member, (survivors,))[survivors]

    def _rows(self, member: int, claims: tuple[Set, ...], signers: tuple[Set, ...]) -> Rows:
        """Which kind of share a member really gave, for whom."""
        kinds: tuple[set[int], set[int]] = (set(), set())
        for shares in self.answers(member, claims, signers):
            for owner in self.everyone:
                row = shares[32 * owner : 32 * owner + 32]
                for kind, true_share in enumerate(self.true_shares[member, owner]):
                    if row == true_share:
                        kinds[kind].add(owner)
        return frozenset(kinds[0]), frozenset(kinds[1])

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
            found += [tuple(pair) for pair in product(useful, repeat=count) if len(set(pair)) == count]
        return found

    def strategies(self) -> Iterator[Strategy]:
        """Every strategy."""
        for chosen in product(*(self.choices(member) for member in self.honest)):
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

    def outcome(self, strategy: Strategy) -> Leak | None:
        """The leak that a strategy makes, if any."""
        counts = ([len(self.colluding)] * len(self.everyone), [len(self.colluding)] * len(self.everyone))
        signers = self.forwarded(strategy)
        for member, claims in strategy.items():
            if claims:
                for count, owners in zip(counts, self.rows(member, claims, signers[member]), strict=True):
                    for owner in owners:
                        count[owner] += 1
        known = [
            frozenset(owner for owner in self.everyone if count[owner] >= self.threshold or owner in self.colluding)
            for count in counts
        ]
        self_masks, mask_keys = known
        clique = tuple(member for member in self.honest if member not in mask_keys)
        components = [clique] if clique else []
        components += [(member,) for member in self.honest if member in mask_keys]
        sums = tuple(component for component in components if self_masks.issuperset(component))
        least = self.least - len(self.colluding)
        if len(sums) > 1 or any(len(component) < least for component in sums):
            return Leak(strategy, sums, self_masks, mask_keys)
        return None

    def search(self) -> Leak | None:
        """The first strategy that leaks; None when all have been tried in vain."""
        return next((leak for strategy in self.strategies() if (leak := self.outcome(strategy))), None)

    def confirm(self, leak: Leak) -> None:
        """Run the strategy for real: combine the shares, take the masks off, compare with the plain sums."""
        signers = self.forwarded(leak.strategy)
        given: dict[tuple[int, int], dict[int, bytes]] = {}  # (owner, kind) -> holder -> share
        for owner in self.everyone:
            for kind in (0, 1):
                given[owner, kind] = {holder: self.true_shares[holder, owner][kind] for holder in self.colluding}
        for member, claims in leak.strategy.items():
            for shares in self.answers(member, claims, signers[member]):
                for owner in self.everyone:
                    row = shares[32 * owner : 32 * owner + 32]
                    for kind in (0, 1):
                        if row == self.true_shares[member, owner][kind]:
                            given[owner, kind][member] = row
        secrets = {
            what: adversary.combine(shares, self.threshold)
            for what, shares in given.items()
            if len(shares) >= self.threshold
        }
        for (owner, kind), secret in secrets.items():
            check = adversary.is_mask_key if kind else adversary.is_self_mask
            assert check(self.federation, owner, 0, secret)
        self_masks = {owner: secret for (owner, kind), secret in secrets.items() if kind == 0}
        mask_keys = {owner: secret for (owner, kind), secret in secrets.items() if kind == 1}
        for member in self.colluding:  # a colluder reveals its own
            mask_keys[member] = self.colluders_mask_key(member)
        for component in leak.sums:
            opened = adversary.open_sum(self.federation, 0, component, self_masks, mask_keys)
            assert (opened == self.federation.plain_sum(0, component)).all()

    def colluders_mask_key(self, member: int) -> bytes:
        """A colluder's own mask key; here rebuilt from all shares, in life it simply keeps it."""
        shares = {holder: self.true_shares[holder, member][1] for holder in self.everyone}
        return adversary.combine(shares, self.threshold)


def safe(members: int, colluders: int, threshold: int) -> bool:
    """The threshold rule."""
    return 2 * threshold > members + colluders


SETTINGS = [
    (members, colluders, threshold)
    for members in (3, 4)
    for colluders in range(members - 1)
    for threshold in range(1, members + 1)
]
SAFE = [setting for setting in SETTINGS if safe(*setting)]
UNSAFE = [setting for setting in SETTINGS if not safe(*setting)]


@pytest.mark.parametrize(("members", "colluders", "threshold"), SAFE)
@pytest.mark.parametrize("claims", [1, 2])
def test_no_strategy_leaks(members: int, colluders: int, threshold: int, claims: int) -> None:
    for least in range(max(threshold, colluders + 2), members + 1):
        assert Checker(members, colluders, threshold, least, claims=claims).search() is None


@pytest.fixture
def any_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides accept any plan."""
    monkeypatch.setattr(client_module, "check_plan", lambda plan: None)
    monkeypatch.setattr(server_module, "check_plan", lambda plan: None)


@pytest.mark.parametrize(("members", "colluders", "threshold"), SETTINGS)
def test_threshold_rule_is_exact(any_threshold: None, members: int, colluders: int, threshold: int) -> None:
    """With as small a minimum as the threshold allows, a leak exists exactly where 2 * threshold <= n + c."""
    checker = Checker(members, colluders, threshold, least=threshold)
    leak = checker.search()
    assert (leak is None) == safe(members, colluders, threshold)
    if leak is not None:
        checker.confirm(leak)


@pytest.mark.parametrize(("members", "colluders", "threshold", "least"), [(3, 0, 2, 3), (4, 1, 3, 4), (4, 0, 3, 4)])
def test_without_the_minimum_a_small_sum_opens(members: int, colluders: int, threshold: int, least: int) -> None:
    assert Checker(members, colluders, threshold, least).search() is None
    checker = Checker(members, colluders, threshold, least, without("_rule_enough_survivors"))
    leak = checker.search()
    assert leak is not None and len(leak.sums[0]) < least - colluders
    checker.confirm(leak)


ONE_SET = ("_rule_one_survivor_set", "_rule_erase_answered")


@pytest.mark.parametrize(("members", "colluders", "threshold"), [(3, 0, 2), (3, 1, 3), (4, 2, 4)])
def test_without_one_survivor_set_inputs_open(members: int, colluders: int, threshold: int) -> None:
    """Two layers: the refusal of a second set, and the erasure of what was answered. Either alone prevents the leak."""
    least = max(threshold, colluders + 2)
    for layer in ONE_SET:
        assert Checker(members, colluders, threshold, least, without(layer), claims=2).search() is None
    checker = Checker(members, colluders, threshold, least, without(*ONE_SET), claims=2)
    leak = checker.search()
    if threshold == members:  # only the whole epoch may be claimed: there is no second set
        assert leak is None
    else:
        assert leak is not None and len(leak.sums) > 1
        checker.confirm(leak)


def test_without_agreement_a_small_sum_opens() -> None:
    """Five members, none colluding, threshold three: each may be told another set, none of them twice."""
    checker = Checker(5, 0, 3, 3, without("_rule_signed_survivors"))
    leak = checker.search()
    assert leak is not None and len(leak.sums[0]) < 3
    assert len(set(leak.strategy.values())) > 1
    checker.confirm(leak)
    assert Checker(5, 0, 3, 3).outcome(leak.strategy) is None  # the very strategy, against the whole protocol


@pytest.mark.parametrize(("colluders", "threshold"), [(0, 3), (0, 4), (0, 5), (1, 4), (1, 5), (2, 4), (2, 5), (3, 5)])
def test_no_strategy_leaks_with_five_members(colluders: int, threshold: int) -> None:
    for least in range(max(threshold, colluders + 2), 6):
        assert Checker(5, colluders, threshold, least).search() is None


@pytest.mark.exhaustive
@pytest.mark.parametrize(("colluders", "threshold"), [(0, 5), (0, 6), (1, 4), (1, 5), (2, 5), (3, 5), (4, 6)])
def test_no_strategy_leaks_with_six_members(colluders: int, threshold: int) -> None:
    """All settings but the largest, (0, 4), whose 24 million strategies take too long."""
    for least in range(max(threshold, colluders + 2), 7):
        assert Checker(6, colluders, threshold, least).search() is None
