"""What noised sums have cost a client outlives its process: a server gets no second budget by a client's restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codream_clients.privacy.accounting import concentrated_rho, of_rho
from codream_clients.privacy.ledger import BudgetExceeded, Ledger, LedgerRolledBack
from codream_protocols.charter import Policy
from codream_protocols.client import Begun, ClientProtocol, Compute, Memory, State
from codream_protocols.errors import PolicyViolation
from codream_protocols.messages import Invitation
from codream_protocols.zcdp import epsilon_of, rho_of
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import client_policy, open_client_ledger
from secure_codream.deployment.client import ChargedJournal, _with_spent
from secure_codream.simulation.diary import Diary
from secure_codream.simulation.wire import Federation
from tests.secure_codream.small import roster_of

CONFIG = FederationConfig.model_validate(
    {
        "federation": {"name": "noised", "rounds": 1},
        "task": {"shape": (1, 8, 8), "classes": 10},
        "dreams": {"batch": 4, "steps": 2},
        "client_privacy": {"epsilon": 3.0, "delta": 1e-6, "update_norm": 20.0, "logit_norm": 1.0},
    }
)
CLIENT = ClientConfig.model_validate({"name": "client-0", "model": "mlp"})
COURSE = make_course(CONFIG)
VICTIM = 0


def opened(folder: Path) -> Ledger:
    return open_client_ledger(folder / "client_privacy.jsonl", CLIENT, CONFIG)


def policy_of() -> Policy:
    return client_policy(CLIENT, CONFIG, COURSE)


def federation(ledger: Ledger) -> Federation:
    """Four clients under the configuration's charter, not yet set up; the first one's charges go into `ledger`."""
    charter = CONFIG.charter(roster_of(4)[1])
    whole = Federation(4, charter=charter, course=COURSE, policy=policy_of())
    whole.clients[VICTIM] = started(whole, ledger, Memory())
    return whole


def started(whole: Federation, ledger: Ledger, memory: Memory, *, spent: bool = True) -> ClientProtocol:
    """The victim's machine as its process starts it, from its journal's memory and its ledger."""
    rho = concentrated_rho(ledger.charges) if spent else 0.0
    return ClientProtocol(
        charter=whole.charter,
        roster=whole.roster,
        course=COURSE,
        member=VICTIM,
        signer=whole.signers[VICTIM],
        policy=policy_of(),
        memory=_with_spent(memory, rho),
        journal=ChargedJournal(whole.diaries[VICTIM], ledger, lambda: None, VICTIM),
        random_bytes=whole.tapes[VICTIM],  # the federation encodes once more what it has seen sent
    )


def test_policy_asks_for_the_noise_and_the_budget_of_the_configuration() -> None:
    policy = policy_of()
    assert policy.most_rho == rho_of(3.0, 1e-6) and policy.least_noise > 0
    plan = Federation(4, charter=CONFIG.charter(roster_of(4)[1]), course=COURSE).plan
    policy.check(plan)
    assert plan.total_rho == pytest.approx(rho_of(3.0, 1e-6), rel=1e-2)


def test_every_noised_step_is_written_before_it_is_computed(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        whole = federation(ledger)
        written: list[int] = []
        random_input = whole.input_of

        def noted(member: int, effect: Compute) -> Mapping[str, np.ndarray[Any, Any]] | None:
            if member == VICTIM:
                written.append(len(ledger.charges))
            return random_input(member, effect)

        whole.input_of = noted
        whole.epoch()
        assert written == [1, 2, 3]  # two updates and the labels
        spent = concentrated_rho(ledger.charges)
        assert spent == pytest.approx(whole.clients[VICTIM].spent_rho) == pytest.approx(whole.plan.total_rho)
        assert ledger.spent == epsilon_of(spent, 1e-6)
        assert 0.99 * 3 < ledger.spent <= 3.0


def all_but_certified(whole: Federation) -> None:
    """Every sum of an epoch is out, and nobody's vote arrives: the server goes on as if it had not been."""
    assert whole.set_up()
    while whole.server.step is not None:
        assert whole.step() is not None
    whole.server_journal = type(whole.server_journal)()
    number = whole.server._next_epoch
    whole.restart_server()
    whole.server._next_epoch = number


@pytest.mark.parametrize(
    ("journal", "books"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["both kept", "journal alone", "ledger alone", "control: both lost"],
)
def test_a_client_that_starts_again_has_no_second_budget(tmp_path: Path, journal: bool, books: bool) -> None:
    with opened(tmp_path) as ledger:
        whole = federation(ledger)
        all_but_certified(whole)
        kept = whole.diaries[VICTIM].memory
    # A vote would bind it anyway; the budget must do so by itself.
    memory = Memory(next_epoch=kept.next_epoch, rho=kept.rho) if journal else Memory()
    whole.diaries[VICTIM] = Diary()
    with opened(tmp_path) as again:
        client = started(whole, again, memory, spent=books)
        offer = Invitation(whole.offer(epoch=1))
        if journal or books:
            with pytest.raises(PolicyViolation, match="rho"):
                client.receive(offer)
            with pytest.raises(BudgetExceeded):  # and the ledger says the same, were the machine to ask it
                again.reserve(of_rho(whole.plan.rho(whole.plan.spec(0)), "noised sum"))
        else:
            client.receive(offer)
        assert (client.plan is not None) is not (journal or books)


def test_a_step_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        whole = federation(ledger)
        ledger.close()  # as after a write that failed
        with pytest.raises(Exception, match="open the ledger again"):
            whole.set_up()
        client = whole.clients[VICTIM]
        assert (client.state, client.steps_begun, client.spent_rho) == (State.IDLE, 0, 0.0)
        assert VICTIM not in whole.computing and whole.diaries[VICTIM].memory.begun is None
    with opened(tmp_path) as ledger:  # control: with a ledger it is
        whole = federation(ledger)
        assert whole.set_up() and whole.clients[VICTIM].state is State.COMPUTING


def test_what_costs_nothing_is_not_charged(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        whole = Federation(3)
        ChargedJournal(whole.diaries[0], ledger, lambda: None, 0).began(Begun(bytes(32), 0, bytes(32)), 0.0)
        assert not ledger.charges and whole.diaries[0].memory.steps == 1


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
