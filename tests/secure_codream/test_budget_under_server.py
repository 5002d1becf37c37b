"""No sequence of a server's messages makes a client overspend: a private client, whole, under a server that may do all.

Real are the client's protocol machine, its learner, plan, ledger and releases, put together as its process does it, and
the wire to a real server machine. The three mechanisms that look at records are replaced where they do: they count, by
what they are really called with, and release zeros. `Overspent` is raised when those that ran have cost more than the
budget; each control takes one defence away and must find it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from codream_clients.data.datasets import LabelledImages
from codream_clients.dream_learner import DreamLearner
from codream_clients.privacy import participant as private_participant
from codream_clients.privacy import training as private_training
from codream_clients.privacy.accounting import SampledGaussian, epsilon_of
from codream_clients.privacy.ledger import Ledger, LedgerError
from codream_clients.privacy.plan import PrivacyPlan
from codream_clients.privacy.releases import Iterates, Release, Releases
from codream_clients.privacy.statistics import group_norms
from codream_protocols.client import Certified, Compute, Memory
from codream_protocols.errors import RemoteProtocolError
from codream_protocols.messages import EpochRecord, Published
from codream_protocols.server import Phase
from secure_codream.configuration import limits
from secure_codream.configuration.assembly import make_participant
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import client_policy, open_ledger
from secure_codream.simulation.diary import Diary
from secure_codream.simulation.wire import Federation
from tests.clients.test_ledger import WithoutAnchor, WithoutCheck, settings_for
from tests.secure_codream.small import roster_of

SHAPE, CLASSES, BATCH = (1, 8, 8), 10, 2
FEDERATION = FederationConfig.model_validate(
    {
        "federation": {"name": "spending", "rounds": 6},
        "task": {"shape": SHAPE, "classes": CLASSES},
        "dreams": {"batch": BATCH, "steps": 1},
        "learning": {"distil_epochs": 0, "local_steps": 1},
        "privacy": {
            "epsilon": 4.0, "delta": 1e-3, "batch_size": 40, "warm_up_epochs": 1, "round_epochs": 1,
            "training_rounds": 2, "statistics_share": 0.1, "accountant": "rdp",
        },
    }
)  # fmt: skip
CLIENT = ClientConfig.model_validate({"name": "a", "model": "mlp_gn", "device": "cpu"})
RECORDS = LabelledImages(np.zeros((40, *SHAPE), np.float32), np.arange(40) % CLASSES, CLASSES)
COURSE = make_course(FEDERATION)
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
        patch.setattr(private_participant, "require_private_model", lambda *model: None)  # it has tests of its own
        patch.setattr(private_participant, "noisy_histogram", self._histogram)
        patch.setattr(private_participant, "private_statistics", self._statistics)

    def _train(self, *data: Any, plan: PrivacyPlan, steps: int, **rest: Any) -> None:
        self._run(SampledGaussian(plan.noise_multiplier, plan.sample_rate, steps, "training"))

    def _histogram(self, counts: Any, noise_multiplier: float, generator: Any) -> np.ndarray[Any, Any]:
        self._run(SampledGaussian(noise_multiplier, 1.0, 1, "histogram"))
        return np.ones(CLASSES, np.float32)

    def _statistics(self, model: torch.nn.Module, *data: Any, noise_multiplier: float, **rest: Any) -> Any:
        self._run(SampledGaussian(noise_multiplier, 1.0, 1, "statistics"))
        layers = group_norms(model)
        return [(torch.zeros(layer.num_channels), torch.ones(layer.num_channels)) for layer in layers]

    def _run(self, look: SampledGaussian) -> None:
        """What dies before it has come to anything has told nobody anything."""
        self._burn()
        self._burn()
        self.ran.append(look)

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
        self.patch.setattr(limits, "Ledger", self.ledger_class)
        self.mechanisms = Mechanisms(self.patch)
        self.ledger: Ledger | None = None
        self.copies: list[bytes] = []
        self.federation = Federation(
            3,
            charter=FEDERATION.charter(roster_of(3)[1]),
            course=COURSE,
            policy=client_policy(CLIENT, FEDERATION, COURSE),
        )
        self.federation.input_of = self._input
        self._start(resume=False)

    # -- the client -------------------------------------------------------------------------------------

    def _start(self, *, resume: bool, forgets: bool = False) -> None:
        """As a client's process does; a ledger that does not permit it ends the process.

        `forgets`: its journal is lost, so that all that was certified is learnt once more.
        """
        federation = self.federation

        def releases(plan: PrivacyPlan, images: LabelledImages) -> Releases:
            ledger = self.ledger = open_ledger(self.path, CLIENT, FEDERATION, plan, images)
            own = ledger.own
            return self.releases_class(
                ledger.reserve, self.folder / "releases", "key", released=ledger.released, spent=own.released,
                unreleased=own.unreleased, resumes=True,
            )  # fmt: skip

        if forgets:
            federation.diaries[VICTIM] = Diary()
        federation.clients[VICTIM] = federation._client(
            VICTIM, federation.charter, Memory() if forgets else federation.diaries[VICTIM].memory
        )
        federation.computing.pop(VICTIM, None)
        self.learnt = len(federation.news[VICTIM].certified)
        try:
            participant = make_participant(
                CLIENT, FEDERATION, data=(RECORDS, None), releases=releases, warmed_up=resume
            )
            _ = participant.begin() if resume else participant.warm_up()
        except (LedgerError, Crash):
            self._die()
            return
        self.learner = DreamLearner(participant)

    def _die(self) -> None:
        self.mechanisms.fuse = None
        self.federation.wire.clear()
        self.federation.computing.pop(VICTIM, None)
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = None

    def _input(self, member: int, effect: Compute) -> Mapping[str, np.ndarray[Any, Any]] | None:
        if member == VICTIM:
            return self.learner.compute(effect.task, effect.spec)
        return self.federation._random_input(member, effect)

    def _learn(self) -> None:
        """What has been certified at the client, once each and in order, as its runner does."""
        certified: list[Certified] = self.federation.news[VICTIM].certified
        while self.ledger is not None and self.learnt < len(certified):
            news = certified[self.learnt]
            self.learnt += 1
            try:
                self.learner.learn(news.number, news.publication)
            except LedgerError:
                continue  # for its own log; the federation goes on

    @property
    def path(self) -> Path:
        return self.folder / "privacy.jsonl"

    # -- the server -------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 4), fuse=st.none() | st.integers(0, 3), twice=st.booleans())
    def server_asks(self, steps: int, fuse: int | None, twice: bool) -> None:
        """The next steps, an epoch begun where none runs; each sum said twice if `twice`; the client may die at one."""
        self.mechanisms.fuse = fuse
        federation = self.federation
        try:
            for _ in range(steps):
                if self.ledger is None or federation.server.done:
                    break
                if federation.server.phase is Phase.IDLE and not federation.set_up():
                    break
                self._learn()
                federation.step()
                said = [item for item in federation.sent if item.member == VICTIM and item.kind is Published][-1:]
                federation.wire += said * twice
                federation.finish()
                self._learn()
        except Crash:
            self._die()
        self.mechanisms.fuse = None

    @rule()
    def server_gives_the_epoch_up(self) -> None:
        """And begins another, as often as the charter lets it."""
        federation = self.federation
        if federation.server.phase in (Phase.ADVERTISING, Phase.SEALING, Phase.COLLECTING):
            federation.emit(federation.server._give_up("no reason"))
            federation.drain()

    @rule(forged=st.integers(1, 9))
    def server_forges_a_certificate(self, forged: int) -> None:
        """Sums that nobody has voted for are not learnt from."""
        if self.ledger is None:
            return
        before = len(self.federation.news[VICTIM].certified)
        record = EpochRecord(self.federation.offer(epoch=forged), (), (), (), ())
        with contextlib.suppress(RemoteProtocolError):
            self.federation.perform(VICTIM, self.federation.tell(VICTIM, record))
        assert len(self.federation.news[VICTIM].certified) == before

    # -- power and disk ---------------------------------------------------------------------------------

    @rule(resume=st.booleans(), forgets=st.booleans(), fuse=st.none() | st.integers(0, 5))
    def client_starts_again(self, resume: bool, forgets: bool, fuse: int | None) -> None:
        """With its model or without; without its journal it takes part anew, and learns anew."""
        self._die()
        self.mechanisms.fuse = fuse
        self._start(resume=resume, forgets=forgets)
        self.mechanisms.fuse = None

    @rule(which=st.integers(0, 9))
    def certified_epoch_is_learnt_again(self, which: int) -> None:
        """As after a crash between a certificate and its learning, or with a model that was put back."""
        if self.ledger is not None:
            with contextlib.suppress(LedgerError):
                self.learner.learn(which, {"dreams": DREAMS, "soft_labels": LABELS})

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
            self._reserve(charge)
            self._folder.mkdir(exist_ok=True)
            receipt.touch()
        release: Release = mechanism(Iterates())
        return release


class PaysAfterwards(Releases):
    """Runs the mechanism, and pays for what came of it."""

    def once(self, charge: SampledGaussian, mechanism: Any) -> Release:
        released = dict(mechanism(Iterates()))
        return super().once(charge, lambda iterates: released)


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
    for number in range(1, 4):
        client.server_asks(len(COURSE.schedule(0)), None, True)
        assert client.federation.server.certified == number
    assert [look.purpose for look in client.mechanisms.ran] == [
        "histogram",
        "training",
        "statistics",
        *["training"] * 2,
    ]
    client.what_really_ran_is_within_the_budget()
    client.teardown()


def test_the_machine_reaches_restarts() -> None:
    """Control of the harness: a client that was started again takes part, and trains as often as is left."""
    client = machine()()
    client.begin()
    client.server_asks(len(COURSE.schedule(0)), None, False)
    client.server_asks(2, None, False)
    client.client_starts_again(True, False, None)
    for _ in range(8):
        client.server_asks(4, None, False)
    assert client.federation.server.certified >= 3
    assert [look.purpose for look in client.mechanisms.ran].count("training") == 3
    client.teardown()
