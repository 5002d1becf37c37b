"""No sequence of a server's messages makes a client overspend: a private client, whole, under a server that may do all.

Real are the client's protocol machine, its learner, plan, ledger and releases, put together as its process does it, and
the wire to a real server machine. The three mechanisms that look at records are replaced where they do: they count, by
what they are really called with, and release zeros. `Overspent` is raised when those that ran have cost more than the
budget; each control takes one defence away and must find it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from codream_clients import private_participant, private_training
from codream_clients.accounting import SampledGaussian, epsilon_of
from codream_clients.datasets import LabelledImages
from codream_clients.ledger import Ledger, LedgerError
from codream_clients.privacy_plan import PrivacyPlan
from codream_clients.releases import Release, Releases
from codream_clients.tasks import DreamLearner
from codream_protocols.client import ClientProtocol, Compute
from codream_protocols.messages import Broadcast
from codream_protocols.server import Phase, ServerEpoch
from codream_protocols.tasks import METRICS, logits_spec, metrics_spec, update_spec
from secure_codream import learning
from secure_codream.config import ClientConfig, FederationConfig
from secure_codream.learning import client_policy, make_participant, open_ledger
from secure_codream.threats.federation import Federation, make_plan
from tests.clients.test_ledger import WithoutAnchor, WithoutCheck, settings_for

SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 2
FEDERATION = FederationConfig.model_validate(
    {
        "federation": {"name": "spending", "rounds": 2},
        "task": {"shape": SHAPE, "classes": CLASSES},
        "dreams": {"batch": BATCH, "steps": 1},
        "learning": {"distil_epochs": 0, "local_steps": 1},
        "privacy": {
            "epsilon": 4.0, "delta": 1e-3, "batch_size": 40, "warm_up_epochs": 1, "round_epochs": 1,
            "statistics_share": 0.1, "accountant": "rdp",
        },
    }
)  # fmt: skip
CLIENT = ClientConfig.model_validate({"name": "a", "model": "mlp_gn", "device": "cpu"})
RECORDS = LabelledImages(np.zeros((40, *SHAPE), np.float32), np.arange(40) % CLASSES, CLASSES)
SPECS = (update_spec(BATCH * 64, CLASSES, 1.0), logits_spec(BATCH, CLASSES, 30.0), metrics_spec())
DREAMS, LABELS = np.zeros((BATCH, *SHAPE), np.float32), np.zeros((BATCH, CLASSES), np.float32)
VICTIM = 0


class Crash(BaseException):
    """The client's process was killed."""


class Overspent(AssertionError):
    """The mechanisms that ran have cost more than the budget."""


class Mechanisms:
    """Stand in for what looks at records: note what has run, at what cost, and let the process die before or after."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ran: list[SampledGaussian] = []
        self.fuse: int | None = None  # how many looks may still begin or end
        patch.setattr(private_training, "private_sgd", self._train)
        patch.setattr(private_participant, "noisy_histogram", self._histogram)
        patch.setattr(private_participant, "private_statistics", self._statistics)

    def _train(self, *data: Any, plan: PrivacyPlan, steps: int, **rest: Any) -> None:
        self._run(SampledGaussian(plan.noise_multiplier, plan.sample_rate, steps, "training"))

    def _histogram(self, counts: Any, noise_multiplier: float, generator: Any) -> np.ndarray[Any, Any]:
        self._run(SampledGaussian(noise_multiplier, 1.0, 1, "histogram"))
        return np.ones(CLASSES, np.float32)

    def _statistics(self, model: torch.nn.Module, *data: Any, noise_multiplier: float, **rest: Any) -> Any:
        self._run(SampledGaussian(noise_multiplier, 1.0, 1, "statistics"))
        layers = private_participant.group_norms(model)
        return [(torch.zeros(layer.num_channels), torch.ones(layer.num_channels)) for layer in layers]

    def _run(self, look: SampledGaussian) -> None:
        self._burn()
        self.ran.append(look)
        self._burn()

    def _burn(self) -> None:
        if self.fuse == 0:
            raise Crash
        self.fuse = None if self.fuse is None else self.fuse - 1


class Client(RuleBasedStateMachine):
    """A private client among three; its server, its power and its disk do what they like."""

    ledger_class: type[Ledger] = Ledger
    releases_class: type[Releases] = Releases

    @initialize()
    def begin(self) -> None:
        torch.set_num_threads(1)
        self.folder, self.patch = Path(tempfile.mkdtemp()), pytest.MonkeyPatch()
        self.patch.setattr(learning, "Ledger", self.ledger_class)
        self.mechanisms = Mechanisms(self.patch)
        self.ledger: Ledger | None = None
        self.copies: list[bytes] = []
        self.sessions = self.epoch = 0
        plan = make_plan(
            Federation(3).roster, specs=SPECS, colluders=1, least_survivors=3, threshold=3, recipe=FEDERATION.recipe
        )
        self.federation = Federation(3, plan=plan, policy=client_policy(CLIENT, FEDERATION))
        self.federation.input_of = self._input
        self._start(resume=False)
        self._offer([0, 1, 2])

    # -- the client -------------------------------------------------------------------------------------

    def _start(self, *, resume: bool) -> None:
        """As a client's process does; a ledger that does not permit it ends the process."""

        def releases(plan: PrivacyPlan) -> Releases:
            self.ledger = open_ledger(self.path, CLIENT, FEDERATION, plan)
            return self.releases_class(self.ledger.reserve, self.folder / "releases", "key")

        try:
            participant = make_participant(
                CLIENT, FEDERATION, data=(RECORDS, None), releases=releases, warmed_up=resume
            )
            _ = participant.begin() if resume else participant.warm_up()
        except (LedgerError, Crash):
            self._die()
            return
        self.learner = DreamLearner(participant, shape=SHAPE, classes=CLASSES)
        federation = self.federation
        federation.clients[VICTIM] = ClientProtocol(
            member=VICTIM, signer=federation.signers[VICTIM], roster=federation.roster, policy=federation.policy
        )

    def _die(self) -> None:
        self.mechanisms.fuse = None
        self.federation.wire.clear()
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = None

    def _input(self, member: int, effect: Compute) -> Mapping[str, np.ndarray[Any, Any]]:
        if member == VICTIM:
            return self.learner.compute(effect.task, effect.arrays, effect.clips)
        return self.federation._random_input(member, effect)

    @property
    def path(self) -> Path:
        return self.folder / "privacy.jsonl"

    # -- the server -------------------------------------------------------------------------------------

    def _offer(self, schedule: list[int]) -> None:
        federation = self.federation
        federation.plan = msgspec.structs.replace(
            federation.plan, session=self.sessions.to_bytes(16, "big"), epoch=self.epoch, schedule=tuple(schedule)
        )
        federation.server = ServerEpoch(federation.plan, federation.roster)
        federation.wire.clear()
        if self.ledger is not None:
            federation.set_up()

    @rule(schedule=st.lists(st.sampled_from([0, 1, 2, 2]), min_size=1, max_size=5), new=st.booleans())
    def server_plans_another_epoch(self, schedule: list[int], new: bool) -> None:
        """More rounds than planned, tasks in any order and number, in this session or another."""
        self.sessions, self.epoch = (self.sessions + 1, 0) if new else (self.sessions, self.epoch + 1)
        self._offer(schedule)

    @rule(steps=st.integers(1, 5), fuse=st.none() | st.integers(0, 3), twice=st.booleans())
    def server_asks(self, steps: int, fuse: int | None, twice: bool) -> None:
        """The next steps of the plan, each broadcast said twice if `twice`; the client may die at one of its looks."""
        self.mechanisms.fuse = fuse
        federation = self.federation
        try:
            for _ in range(steps):
                phase = federation.server.phase
                if self.ledger is None or phase is not Phase.READY:
                    break
                spec = federation.plan.spec(federation._next_step())
                arrays = [DREAMS, LABELS] if spec.task == METRICS else [DREAMS]
                federation.emit(federation.server.begin_step([block.clip for block in spec.blocks], arrays))
                said = [item for item in federation.wire if item.member == VICTIM and item.kind is Broadcast]
                federation.wire += said * twice
                federation.drain()
                while federation.server.phase in (Phase.COLLECTING, Phase.AGREEING, Phase.UNMASKING):
                    federation.emit(federation.server.expire())
                    federation.drain()
        except Crash:
            self._die()
        self.mechanisms.fuse = None

    # -- power and disk ---------------------------------------------------------------------------------

    @rule(resume=st.booleans(), fuse=st.none() | st.integers(0, 5))
    def client_starts_again(self, resume: bool, fuse: int | None) -> None:
        self._die()
        self.mechanisms.fuse = fuse
        self._start(resume=resume)
        self.mechanisms.fuse = None

    @rule()
    def ledger_is_copied(self) -> None:
        self.copies.append(self.path.read_bytes())

    @rule(which=st.integers(0, 9))
    def older_ledger_is_put_back(self, which: int) -> None:
        """Found out, the client stands still until the newest one is back."""
        if self.copies:
            self._die()
            newest = self.path.read_bytes()
            self.path.write_bytes(self.copies[which % len(self.copies)])
            self._start(resume=False)
            if self.ledger is None:
                self.path.write_bytes(newest)

    @rule()
    def releases_are_lost(self) -> None:
        shutil.rmtree(self.folder / "releases", ignore_errors=True)

    @invariant()
    def what_really_ran_is_within_the_budget(self) -> None:
        budget = FEDERATION.privacy or {}
        if epsilon_of(self.mechanisms.ran, budget["delta"], budget["accountant"]) > budget["epsilon"]:
            raise Overspent(self.mechanisms.ran)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self._die()
            self.patch.undo()
            shutil.rmtree(self.folder)


class KeepsTheReceiptAlone(Releases):
    """Pays once, and then takes a mechanism that was paid for to be free."""

    def once(self, charge: SampledGaussian, mechanism: Any) -> Release:
        assert self._folder is not None
        receipt = self._folder / charge.purpose
        if not receipt.exists():
            self.reserve(charge)
            self._folder.mkdir(exist_ok=True)
            receipt.touch()
        release: Release = mechanism()
        return release


class PaysAfterwards(Releases):
    """Runs the mechanism, and pays for what came of it."""

    def once(self, charge: SampledGaussian, mechanism: Any) -> Release:
        released = dict(mechanism())
        return super().once(charge, lambda: released)


def machine(**attributes: Any) -> type[Client]:
    return type("Machine", (Client,), attributes)


def test_no_sequence_of_a_servers_messages_crashes_and_restarts_overspends() -> None:
    run_state_machine_as_test(machine(), settings=settings_for(50))


@pytest.mark.exhaustive
def test_no_long_sequence_overspends() -> None:
    run_state_machine_as_test(machine(), settings=settings_for(1000))


@pytest.mark.parametrize(
    "attributes",
    [
        {"ledger_class": WithoutCheck},
        {"ledger_class": WithoutAnchor},
        {"releases_class": KeepsTheReceiptAlone},
        {"releases_class": PaysAfterwards},
    ],
    ids=["no check", "no anchor", "releases not kept", "paid afterwards"],
)
def test_controls_without_one_defence_the_machine_overspends(attributes: dict[str, Any]) -> None:
    with pytest.raises(Overspent):
        run_state_machine_as_test(machine(**attributes), settings=settings_for(300, hypothesis.Phase.generate))


def test_the_machine_reaches_the_trainings() -> None:
    """Control of the harness: an honest run of what is planned trains three times, and spends all but a rest."""
    client = machine()()
    client.begin()
    client.server_asks(3, None, False)
    client.server_plans_another_epoch([0, 1, 2, 2], False)
    client.server_asks(4, None, True)
    assert [look.purpose for look in client.mechanisms.ran] == [
        "histogram",
        "training",
        "statistics",
        *["training"] * 2,
    ]
    assert [type(error).__name__ for member, error in client.federation.refusals] == ["VectorRefused"]
    client.what_really_ran_is_within_the_budget()
    client.teardown()
