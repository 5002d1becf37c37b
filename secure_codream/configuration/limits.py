"""What bounds a client, from its configuration: its policy, and its ledgers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from codream_clients.data.datasets import LabelledImages
from codream_clients.privacy.accounting import epsilon_of
from codream_clients.privacy.index import Index, SpentElsewhere
from codream_clients.privacy.ledger import (
    Budget,
    BudgetExceeded,
    Ledger,
    LedgerError,
    LedgerMismatch,
    LedgerRolledBack,
    Spender,
)
from codream_clients.privacy.plan import Planned
from codream_clients.privacy.records import digest_of, stored_digests
from codream_clients.privacy.volumes import vanishing
from codream_protocols.charter import Policy
from codream_protocols.course import Course
from codream_protocols.zcdp import rho_of
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError


class LedgerVanishes(LedgerError):
    """The ledger would lie where nothing outlasts the machine's next start."""


class HasLedger(LedgerError):
    """Images with a ledger, in a federation that charges nothing to it."""


class PartUnknown(LedgerError):
    """Nobody can tell whether an earlier part of the data has some of the same images."""


def open_ledger(
    path: Path,
    client: ClientConfig,
    federation: FederationConfig,
    plan: Planned,
    images: LabelledImages,
    *,
    index: Index | None = None,
    took_part: bool = False,
) -> Ledger:
    """The ledger of the client's images, in which the whole plan is reserved.

    Args:
        path: where it lies, if the client's `[budget]` names no other place.
        client: its `[budget]` says what all federations may cost together; the plan's own is it where there is none.
        federation: who plans.
        plan: all that its run will charge.
        images: what is trained on.
        index: of this user's ledgers; None for known sets, whose images protect nobody.
        took_part: whether the client's journal has joined an epoch of this federation.

    Raises:
        LedgerRolledBack: it has, and the ledger knows nothing of it; or as `Ledger.open` says.
        BudgetExceeded: the whole plan does not fit: better not to begin.
        SpentElsewhere: some of the images have spent in another ledger.
        LedgerVanishes: it would lie in memory.
        PartUnknown: of a part that `[budget]` names nobody knows which images it has.
        LedgerError: it has another budget, is damaged, rolled back, or another process holds it.
    """
    path, budget = ledger_path(path, client), own_budget(client, plan)
    if index is not None and (kind := vanishing(path)) is not None:
        raise LedgerVanishes(
            f"{path}: found a {kind}, which is empty after the machine's next start; a ledger on a disk is needed: "
            "name its place as ledger under [budget] of client.toml"
        )
    if index is not None:
        _require_known(earlier_parts(client, index), index)
    ledger = Ledger.open(
        path,
        by=spender(client, federation, images, plan.charter),
        budget=budget,
        anchor=anchor_path(client),
        memory=index,
    )
    try:
        if took_part:
            _require_what_the_journal_knows(path, ledger, federation.federation.name, client.name)
        if not ledger.own.begun and federation.predecessor is None:
            check_planned(plan, budget)
        ledger.plan(plan.charges, **continued(plan, federation))
        if index is not None:
            index.claim(ledger.name, stored_digests(images))
    except SpentElsewhere:
        ledger.end()
        ledger.close()
        raise
    except BaseException:
        ledger.close()
        raise
    return ledger


@dataclass(frozen=True)
class Uncharged:
    """Images with ledgers, by name, that a federation charges nothing to; `text` says so."""

    text: str
    ledgers: tuple[str, ...]


def look_uncharged(
    client: ClientConfig,
    federation: FederationConfig,
    train: LabelledImages,
    test: LabelledImages | None,
    index: Index | None,
) -> list[Uncharged]:
    """Which ledgers images have that a federation trains on, or hears the accuracy on, and charges nothing for.

    Raises:
        HasLedger: some have one, and `[policy]` does not permit it.
    """
    federated, found = federation.federation.name, list[Uncharged]()
    if not federation.record_private and not charges_sums(client, federation):
        charged = (
            "name that ledger under [budget], which noised sums then charge"
            if _noises_all(federation)
            else "a federation with [privacy] or [dp_sgd], or images without a ledger, are allowed"
        )
        does = f"the federation {federated!r} charges nothing to it, and nothing bounds what it is told of them"
        found += _with_ledgers(client, train, "images", index, does, charged)
    if test is not None and tells_accuracy(client, federation):
        does = f"the federation {federated!r} is told how many of them are right, and nothing bounds what that tells"
        found += _with_ledgers(
            client, test, "test images", index, does, "tell_accuracy = false, or others, are allowed"
        )
    return found


def _with_ledgers(
    client: ClientConfig, images: LabelledImages, kind: str, index: Index | None, does: str, instead: str
) -> list[Uncharged]:
    known = index.ledgers_of(stored_digests(images)) if index is not None else []
    if not known:
        return []
    text = f"{known[0].images:,} of {len(images):,} {kind} have spent in the ledger {known[0].path}; {does}"
    if client.policy.uncharged:
        return [Uncharged(f"{text}; [policy] permits it", tuple(one.ledger for one in known))]
    raise HasLedger(
        f"{text}; {instead}; or permit it with uncharged = true under [policy] of client.toml: that ledger's "
        "statements say so from then on"
    )


def tells_accuracy(client: ClientConfig, federation: FederationConfig) -> bool:
    """Whether a sum is told how many of the client's test images are right; no epsilon covers it."""
    if federation.client_privacy is not None or federation.dp_sgd is not None:
        return False
    return not federation.record_private if client.tell_accuracy is None else client.tell_accuracy


def earlier_parts(client: ClientConfig, index: Index | None = None) -> dict[Path, Ledger]:
    """The ledgers of the data's earlier parts, as they are; an index notices older copies of them.

    Raises:
        LedgerMismatch: one is not there.
        LedgerError: one cannot be used.
    """
    found = {}
    for path in () if client.budget is None else client.budget.parts:
        part = Ledger.look(path, by=Spender("nobody", "nobody"), budget=None, memory=index)
        if part is None:
            raise LedgerMismatch(
                f"{path}: found no ledger of an earlier part; parts under [budget] names those there are"
            )
        found[path] = part
    return found


def _require_known(parts: dict[Path, Ledger], index: Index) -> None:
    """`Index.claim` refuses an image of another ledger, if the index has seen it there."""
    for path, part in parts.items():
        if not index.images(part.name):
            raise PartUnknown(
                f"{path}: found no images of this part in {index}, so nobody can tell whether some are here, too; the "
                "index of the user who trained on it is needed, or one ledger for all"
            )


def _require_what_the_journal_knows(path: Path, ledger: Ledger, federation: str, member: str) -> None:
    """Who has joined an epoch has charged for its histogram before; or who has sent a vector, for that step."""
    begun = [by for by, account in ledger.accounts.items() if account.begun]
    if not any(by.federation == federation and by.member == member for by in begun):
        raise LedgerRolledBack(
            f"{path}: found nothing that {member!r} has begun for {federation!r}, in which its journal has joined "
            "epochs; the ledger that was charged is needed: put its newest copy back, or name it under [budget]"
        )


class Continued(TypedDict):
    """How a plan is reserved, as `Ledger.plan` takes it."""

    spare: int
    succeeds: bool


def continued(plan: Planned, federation: FederationConfig) -> Continued:
    """A charter that follows another reserves in its place, and as many of its spare rounds as still fit.

    So does, of the former, one that is begun anew without a word of another, where its charges are its own alone. All
    of a first charter's must fit. Of one that follows, failed rounds and the noise of another roster may have taken
    what its spare ones would need, and without those it can end all the same.
    """
    follows = federation.predecessor is not None
    return {"spare": plan.spare if follows else 0, "succeeds": follows or bool(plan.charter)}


def spender(
    client: ClientConfig, federation: FederationConfig, images: LabelledImages, charter: bytes = b""
) -> Spender:
    """As whom the client charges its training on these images: other settings or images are another run.

    `charter` is the plan's. Where each step or sum is a charge, and nothing that was released is kept, another charter
    is another run, too: what was begun under any other is no part of what is planned now.
    """
    run = f"{federation.recipe.hex()}|{client.model}|{client.seed}|{digest_of(images)}"
    if charter:
        run += f"|{charter.hex()}"
    return Spender(federation.federation.name, client.name, hashlib.sha256(run.encode()).hexdigest())


def ledger_path(path: Path, client: ClientConfig) -> Path:
    """Where the client's ledger lies: `path`, if it names no other place."""
    return path if client.budget is None or client.budget.ledger is None else client.budget.ledger


def anchor_path(client: ClientConfig) -> Path | None:
    """Where its anchor lies; None is beside it."""
    return None if client.budget is None else client.budget.anchor


def charges_sums(client: ClientConfig, federation: FederationConfig) -> bool:
    """Whether noised sums are charged to a client's records: they have a budget, and nothing else of it is spent."""
    return client.budget is not None and _noises_all(federation) and not federation.record_private


def _noises_all(federation: FederationConfig) -> bool:
    """Whether `[client_privacy]` noises all that is sent of images; a course of one's own goes by it as it likes."""
    return federation.client_privacy is not None and federation.federation.course == "codream"


def check_budget(client: ClientConfig, federation: FederationConfig) -> None:
    """A client with a budget of its own trains privately or not at all, and by others' noise where it says so alone.

    Raises:
        ConfigError: the federation spends none, so that the client would train without; or it counts on noise that
            other clients add, which this one does not permit.
    """
    sums = charges_sums(client, federation)
    if (federation.dp_sgd is not None or sums) and not client.policy.shared_noise:
        where = "[budget] and [client_privacy]" if sums else "course 'dp-sgd'"
        raise ConfigError(
            f"[policy]: found no shared_noise with {where}, where others "
            "add most of the noise that protects this client's images, and none of them shows it; shared_noise = true "
            "permits it"
        )
    if client.budget is None or federation.record_private or sums:
        return
    if federation.federation.course == "sums":
        raise ConfigError("[budget] with course 'sums', which spends none; [client_privacy] is what bounds it")
    raise ConfigError(
        "[budget]: this client trains privately or not at all; the federation has no [privacy], [dp_sgd], nor "
        "[client_privacy] with course 'codream'"
    )


def own_budget(client: ClientConfig, plan: Planned) -> Budget:
    """The client's own `[budget]`, or the plan's where it has none."""
    own = client.budget
    if own is None:
        return plan.budget
    return Budget(epsilon=own.epsilon, delta=own.delta, accountant=own.accountant)


def check_planned(plan: Planned, budget: Budget) -> float:
    """The epsilon that a whole plan comes to, as the budget counts.

    Raises:
        BudgetExceeded: more than the budget.
    """
    planned = epsilon_of(plan.charges, budget.delta, budget.accountant)
    if planned > budget.epsilon:
        raise BudgetExceeded(
            f"the federation plans epsilon {planned:.4g} at delta {budget.delta:g}; this client's own budget is "
            f"{budget.epsilon:g}"
        )
    return planned


def open_client_ledger(path: Path, client: ClientConfig, federation: FederationConfig) -> Ledger:
    """What the client has spent of its client-level budget, in this process and earlier ones; raises `LedgerError`.

    Its budget lies above the federation's by what the rounding of many sums takes: `Policy.most_rho` decides first.
    """
    return Ledger.open(path, by=sums_spender(client, federation), budget=client_level_budget(federation))


def sums_spender(client: ClientConfig, federation: FederationConfig) -> Spender:
    """As whom a client charges noised sums."""
    return Spender(federation.federation.name, client.name)


def client_level_budget(federation: FederationConfig) -> Budget:
    """What a federation with `[client_privacy]` may spend of each client."""
    privacy = federation.client_privacy
    assert privacy is not None  # noqa: S101 - only a federation with client-level noise has one
    return Budget(epsilon=privacy.epsilon * (1 + 1e-8), delta=privacy.delta, accountant="zcdp")


def client_policy(client: ClientConfig, federation: FederationConfig, course: Course) -> Policy:
    """The client's policy: its own table, and the noise and the budget that the federation's configuration implies."""
    privacy = federation.client_privacy
    if privacy is None:
        return client.policy.policy()
    # The noise that everybody calibrates alike, but for rounding.
    least_noise = getattr(course, "noise_multiplier", 0.0) * (1 - 1e-9)
    return client.policy.policy(most_rho=rho_of(privacy.epsilon, privacy.delta), least_noise=least_noise)
