"""A private run may be killed at any point: the same charges, all steps, and no refusal."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codream_clients.data.datasets import LabelledImages
from codream_clients.models.zoo import build
from codream_clients.privacy import releases as releases_module
from codream_clients.privacy import training as private_training
from codream_clients.privacy.accounting import SampledGaussian
from codream_clients.privacy.ledger import Ledger, LedgerError, Spender
from codream_clients.privacy.noise import NoiseSource, Stream
from codream_clients.privacy.participant import private_histogram
from codream_clients.privacy.plan import PrivacyPlan, PrivacySettings, plan_privacy
from codream_clients.privacy.releases import Releases
from codream_clients.privacy.training import PrivateTraining
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.limits import open_ledger, spender
from secure_codream.configuration.reading import check

PRIVACY = {"epsilon": 4.0, "delta": 1e-3, "batch_size": 8, "warm_up_epochs": 1, "round_epochs": 1, "accountant": "rdp"}
FEDERATION: FederationConfig = check(
    "config.toml",
    FederationConfig,
    {
        "federation": {"name": "lungs", "rounds": 1},
        "task": {"shape": (1, 8, 8), "classes": 3},
        "dreams": {"batch": 4, "steps": 1},
        "privacy": PRIVACY,
    },
)
CLIENT: ClientConfig = check("client.toml", ClientConfig, {"name": "alice", "model": "mlp_gn"})
DATA = LabelledImages(np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 3, 3)
PLAN: PrivacyPlan = plan_privacy(PrivacySettings(**PRIVACY), records=24, rounds=1)
WARM_UP = PLAN.charges[1]
CPU = torch.device("cpu")


class Killed(BaseException):
    """The process got SIGKILL."""


class Fuse:
    """What may still be written, synced, renamed or stepped before the process dies; None for no end."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.burnt = 0
        self.steps: Counter[str] = Counter()
        for owner, name in ((os, "write"), (os, "fsync"), (Path, "replace")):
            patch.setattr(owner, name, self._tapped(getattr(owner, name)))
        usual = private_training.private_sgd

        def counted(*arguments: Any, after: Any, **options: Any) -> None:
            def done(steps: int) -> None:
                self._burn()
                after(steps)

            usual(*arguments, after=done, **options)

        patch.setattr(private_training, "private_sgd", counted)

    def _tapped(self, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self._burn()
            result = real(*arguments)
            self._burn()
            return result

        return call

    def _burn(self) -> None:
        self.burnt += 1
        if self.left == 0:
            raise Killed
        self.left = None if self.left is None else self.left - 1


def model() -> torch.nn.Module:
    return build("mlp_gn", channels=1, size=8, classes=3, seed=0)


def process(folder: Path, ended: list[str], plan: PrivacyPlan = PLAN) -> None:
    """A client's process: histogram, warm-up, a round; `ended` names the trainings that came to their end."""
    settings, (_, _, a_round) = plan.settings, plan.charges
    with open_ledger(folder / "privacy.jsonl", CLIENT, FEDERATION, plan, DATA) as ledger:
        own = ledger.own
        shelf = Releases(
            ledger.reserve,
            folder / "releases",
            spender(CLIENT, FEDERATION, DATA).run,
            released=ledger.released,
            spent=own.released,
            unreleased=own.unreleased,
            resumes=True,
        )
        private_histogram(DATA, plan, shelf, NoiseSource())
        training = PrivateTraining(plan, None, shelf, NoiseSource(), CPU)
        network = model()
        training(network, DATA, settings.warm_up_epochs, 0)
        ended.append("warm-up")
        if a_round not in shelf.spent:
            training(network, DATA, settings.round_epochs, 0)
            ended.append("round")
        ledger.end()


def charged(folder: Path) -> Counter[SampledGaussian]:
    found = Ledger.look(folder / "privacy.jsonl", by=Spender("lungs", "alice"), budget=None)
    assert found is not None
    return Counter(found.charges)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_run_that_is_killed_at_any_point_ends_with_the_same_charges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """At every write, sync, renaming and step, before it and after it; and once more while it starts again."""
    torch.set_num_threads(1)
    monkeypatch.setattr(releases_module, "KEPT_EVERY", 0.0)
    fuse, ended = Fuse(monkeypatch), [""]
    process(tmp_path, ended)
    whole = fuse.burnt
    assert charged(tmp_path) == Counter(PLAN.charges) and whole > 60
    for point in range(0, whole, stride):
        folder = tmp_path / str(point)
        folder.mkdir()
        ended.clear()
        for left in (point, point // 2):
            fuse.left = left
            with pytest.raises(Killed):
                process(folder, ended)
                raise Killed
        fuse.left = None
        process(folder, ended)
        assert charged(folder) == Counter(PLAN.charges), point
        assert "warm-up" in ended and ended.count("round") <= 1, point


def test_control_with_the_noise_of_the_first_try_it_would_be_drawn_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes on must not go on with the same stream: two steps with one noise show their difference without any."""
    monkeypatch.setattr(releases_module, "KEPT_EVERY", 0.0)
    drawn: list[bytes] = []
    usual, fuse = Stream.normal, Fuse(monkeypatch)

    def kept(self: Stream, count: int) -> Any:
        found = usual(self, count)
        drawn.append(found.tobytes())
        return found

    monkeypatch.setattr(Stream, "normal", kept)
    for name, source, repeats in (("os", NoiseSource(), False), ("seeded", NoiseSource(1), True)):
        drawn.clear()
        for left in (9, None):
            shelf = Releases(lambda charge: None, tmp_path / name, unreleased=[WARM_UP], resumes=True)
            fuse.left = left
            with suppress(Killed):
                PrivateTraining(PLAN, None, shelf, source, CPU)(model(), DATA, 1, 0)
        assert (len(set(drawn)) < len(drawn)) is repeats


def test_a_full_ledger_refuses_before_anything_is_released(tmp_path: Path) -> None:
    """Control: what the charges say is what is asked of the ledger."""
    with open_ledger(tmp_path / "privacy.jsonl", CLIENT, FEDERATION, PLAN, DATA) as ledger:
        for charge in PLAN.charges:
            ledger.reserve(charge)
        with pytest.raises(LedgerError):
            ledger.reserve(WARM_UP)
