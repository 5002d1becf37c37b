"""What noised sums have cost a client outlives its process: a server gets no second budget by a client's restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from codream_clients.accounting import concentrated_rho, of_rho
from codream_clients.ledger import BudgetExceeded, Ledger, LedgerRolledBack
from codream_protocols.client import ClientProtocol, State
from codream_protocols.errors import PolicyViolation
from codream_protocols.messages import Broadcast, PlanOffer
from codream_protocols.zcdp import epsilon_of, rho_of
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from secure_codream.config import ClientConfig, FederationConfig
from secure_codream.learning import client_policy, open_client_ledger
from secure_codream.threats.federation import STATE, Federation

CONFIG = FederationConfig.model_validate(
    {
        "federation": {"name": "noised", "rounds": 1},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dreams": {"batch": 4, "steps": 2},
        "client_privacy": {"epsilon": 3.0, "delta": 1e-6, "update_norm": 20.0, "logit_norm": 1.0},
    }
)
CLIENT = ClientConfig.model_validate({"name": "client-0", "model": "mlp"})
VICTIM = 0


def opened(folder: Path) -> Ledger:
    return open_client_ledger(folder / "client_privacy.jsonl", CLIENT, CONFIG)


def federation(ledger: Ledger) -> Federation:
    """Four clients and the plan of the configuration, set up; the first one's charges go into `ledger`."""
    coordinator = Coordinator(
        dreams=CONFIG.dream_settings(),
        aggregation=CONFIG.aggregation_settings(),
        roster=Federation(4).roster,
        recipe=CONFIG.recipe,
        session=bytes(16),
        seed=0,
        dataset=FedDreamDataset(1),
        privacy=CONFIG.client_privacy_settings(),
    )
    whole = Federation(4, plan=coordinator.next_plan(range(4)), policy=client_policy(CLIENT, CONFIG))
    whole.clients[VICTIM] = started(whole, ledger)
    assert whole.set_up()
    return whole


def started(whole: Federation, ledger: Ledger, *, remembers: bool = True) -> ClientProtocol:
    """The victim's machine as its process starts it."""
    return ClientProtocol(
        member=VICTIM,
        signer=whole.signers[VICTIM],
        roster=whole.roster,
        policy=whole.policy,
        spent_rho=concentrated_rho(ledger.charges) if remembers else 0.0,
        charge=lambda rho: ledger.reserve(of_rho(rho, "noised sum")),
    )


def test_every_noised_step_is_written_before_it_is_computed_and_no_other(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        whole, written = federation(ledger), []
        random_input = whole.input_of
        whole.input_of = lambda member, effect: (
            written.append(len(ledger.charges)) if member == VICTIM else None,
            random_input(member, effect),
        )[1]
        for _ in range(4):
            assert whole.step() is not None
        assert written == [1, 2, 3, 3]  # two updates, the labels, and the constant of the last step, which is free
        spent = concentrated_rho(ledger.charges)
        assert spent == pytest.approx(whole.clients[VICTIM].spent_rho) == pytest.approx(whole.plan.total_rho)
        assert ledger.spent == epsilon_of(spent, 1e-6)
        assert 0.99 * 3 < ledger.spent <= 3.0


@pytest.mark.parametrize("remembers", [True, False], ids=["remembered", "control: forgotten"])
def test_a_client_that_starts_again_has_no_second_budget(tmp_path: Path, remembers: bool) -> None:
    with opened(tmp_path) as ledger:
        whole = federation(ledger)
        for _ in range(4):
            assert whole.step() is not None
    with opened(tmp_path) as again:
        client = started(whole, again, remembers=remembers)
        offer = PlanOffer(msgspec.structs.replace(whole.plan, session=bytes(15) + b"\1"))
        if remembers:
            with pytest.raises(PolicyViolation, match="rho"):
                client.receive(offer)
            with pytest.raises(BudgetExceeded):  # and the ledger says the same, were the machine to ask it
                again.reserve(of_rho(whole.plan.rho(whole.plan.spec(0)), "noised sum"))
        else:
            client.receive(offer)
        assert (client.plan is not None) is not remembers


def test_a_step_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        whole = federation(ledger)
        client = whole.clients[VICTIM]
        ledger.close()  # as after a write that failed
        clips = tuple(block.clip for block in whole.plan.spec(0).blocks)
        message = Broadcast(whole.plan.digest, 0, clips, (STATE.shape,))
        with pytest.raises(Exception, match="open the ledger again"):
            whole.tell(VICTIM, message, (STATE.tobytes(),))
        assert (client.state, client.answered_steps, client.spent_rho) == (State.READY, 0, 0.0)
    with opened(tmp_path) as ledger:  # control: with a ledger it is
        whole = federation(ledger)
        whole.tell(VICTIM, message, (STATE.tobytes(),))
        assert whole.clients[VICTIM].state is State.COMPUTING


def test_an_older_client_level_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client_privacy.jsonl"
    with opened(tmp_path) as ledger:
        ledger.reserve(of_rho(0.01, "noised sum"))
        older = path.read_bytes()
        ledger.reserve(of_rho(0.01, "noised sum"))
    path.write_bytes(older)
    with pytest.raises(LedgerRolledBack):
        opened(tmp_path)


def test_the_whole_budget_in_many_sums_fits_and_one_more_does_not(tmp_path: Path) -> None:
    rho = rho_of(3.0, 1e-6)
    with opened(tmp_path) as ledger:
        for _ in range(97):
            ledger.reserve(of_rho(rho / 97, "noised sum"))
        with pytest.raises(BudgetExceeded):
            ledger.reserve(of_rho(rho / 97, "noised sum"))
