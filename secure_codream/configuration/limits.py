"""What bounds a client, from its configuration: its policy, and its ledgers."""

from __future__ import annotations

from pathlib import Path

from codream_clients.privacy.accounting import epsilon_of
from codream_clients.privacy.ledger import Budget, BudgetExceeded, Ledger
from codream_clients.privacy.plan import PrivacyPlan
from codream_protocols.charter import Policy
from codream_protocols.course import Course
from codream_protocols.zcdp import rho_of
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError


def open_ledger(path: Path, client: ClientConfig, federation: FederationConfig, plan: PrivacyPlan) -> Ledger:
    """The client's ledger: its own `[budget]`, or the plan's where it has none.

    Raises:
        BudgetExceeded: nothing is spent yet, and the whole plan would not fit: better not to begin.
        LedgerError: it is another client's, damaged, rolled back, or open elsewhere.
    """
    budget = own_budget(client, plan)
    ledger = Ledger.open(path, federation=federation.federation.name, member=client.name, budget=budget)
    try:
        if not ledger.charges:
            check_planned(plan, budget)
    except BudgetExceeded:
        ledger.close()
        raise
    return ledger


def check_budget(client: ClientConfig, federation: FederationConfig) -> None:
    """A client with a budget of its own trains privately or not at all.

    Raises:
        ConfigError: the federation spends none, so that the client would train without.
    """
    if client.budget is None or federation.privacy is not None:
        return
    if federation.federation.course == "sums":
        raise ConfigError("[budget] with course 'sums', which spends none; [client_privacy] is what bounds it")
    raise ConfigError("[budget]: this client trains privately or not at all; the federation has no [privacy]")


def own_budget(client: ClientConfig, plan: PrivacyPlan) -> Budget:
    """The client's own `[budget]`, or the plan's where it has none."""
    own = client.budget
    if own is None:
        return Budget(epsilon=plan.epsilon, delta=plan.delta, accountant=plan.settings.accountant)
    return Budget(epsilon=own.epsilon, delta=own.delta, accountant=own.accountant)


def check_planned(plan: PrivacyPlan, budget: Budget) -> float:
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
    return Ledger.open(
        path, federation=federation.federation.name, member=client.name, budget=client_level_budget(federation)
    )


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
