"""What a run may say about its client-level privacy: mechanism, assumptions, and what was planned and spent."""

from __future__ import annotations

from dataclasses import dataclass

from codream_protocols.charter import Charter
from codream_protocols.courses.codream import ClientPrivacy, DreamSettings
from codream_protocols.courses.labels import VOTES, votes_norm
from codream_protocols.distributed_noise import multiplier_for
from codream_protocols.zcdp import epsilon_of, rho_of


def noise_multiplier_of(privacy: ClientPrivacy, dreams: DreamSettings) -> float:
    """The noise, over the sensitivity, that every noised sum of the federation needs so that all keep the budget."""
    rounds = dreams.rounds + privacy.spare_rounds
    return multiplier_for(privacy.epsilon, privacy.delta, rounds * dreams.revealing_steps)


@dataclass(frozen=True, kw_only=True)
class ClientPrivacyStatement:
    """Client-level differential privacy of one run, as JSON takes it.

    Attributes:
        epsilon: what the whole plan costs a client at `delta`; rho is the same in zCDP.
        delta: in (0, 1).
        epsilon_spent: what the steps that were begun cost, failed ones included; rho_spent likewise.
        noise_multiplier: deviation of the noise of the fewest honest survivors, over the sensitivity.
        honest_shares: how many shares make up that noise: those of the fewest honest members of any sum.
        colluders: clients that may reveal their own shares to the server.
        epsilon_by_colluders: what the whole plan costs where 0, 1, 2, ... clients, up to all but one of the smallest
            sum, reveal their shares. A member knows its own: against members one more is to be counted. As if all
            rounds were under this charter.
        earlier: how many of its rounds were under earlier charters, whose rosters it does not know.
        excess_noise: variance in a sum over the whole roster, over the variance that the promise needs.
        update_norm, logit_norm: Euclidean bounds, in units of the clips; None where nothing of the kind is sent.
        vote_norm: that of a client's votes, which each client's have; None where there are none.
        mechanism, unit, neighbours, accountant, not_covered: in words.
    """

    epsilon: float
    delta: float
    rho: float
    epsilon_spent: float
    rho_spent: float
    noise_multiplier: float
    honest_shares: int
    colluders: int
    epsilon_by_colluders: tuple[float, ...]
    earlier: int
    excess_noise: float
    update_norm: float | None
    logit_norm: float | None
    vote_norm: float | None = None
    mechanism: str = "distributed discrete Gaussian, shares added before masking (Kairouz, Liu, Steinke, ICML 2021)"
    unit: str = "a client: everything that it sends of its data in the whole run"
    neighbours: str = "one client's vectors replaced by zeros"
    accountant: str = "zCDP, converted by proposition 12 of Canonne, Kamath, Steinke (NeurIPS 2020)"
    not_covered: str = "who takes part and when; clients that add no noise beyond the stated colluders; a second run"


def client_privacy_statement(
    privacy: ClientPrivacy, dreams: DreamSettings, charter: Charter, *, spent_rho: float
) -> ClientPrivacyStatement:
    """The statement of a charter's federation that has spent `spent_rho`, in zCDP, so far."""
    honest = charter.least_honest
    rho = rho_of(privacy.epsilon, privacy.delta)
    return ClientPrivacyStatement(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        rho=rho,
        epsilon_spent=epsilon_of(spent_rho, privacy.delta),
        rho_spent=spent_rho,
        noise_multiplier=noise_multiplier_of(privacy, dreams),
        honest_shares=honest,
        colluders=charter.aggregation.colluders,
        epsilon_by_colluders=tuple(
            epsilon_of(rho * honest / (honest + charter.aggregation.colluders - revealed), privacy.delta)
            for revealed in range(honest + charter.aggregation.colluders)
        ),
        earlier=charter.earlier,
        excess_noise=charter.members / honest,
        update_norm=privacy.update_norm,
        logit_norm=privacy.logit_norm,
        vote_norm=votes_norm(dreams.labels) if dreams.label_by == VOTES else None,
    )
