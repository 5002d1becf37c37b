"""Wherever a model comes in, it goes through the gate, before anything is trained, reserved or sent."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codream_clients.data.datasets import LabelledImages, load_digits_data
from codream_clients.learning.settings import LearningSettings
from codream_clients.models import zoo
from codream_clients.models.gate import examine, require_own_weights, trial_images
from codream_clients.models.refusals import ModelRefused
from codream_clients.privacy.gate import examine_private
from codream_clients.privacy.noise import NoiseSource
from codream_clients.privacy.participant import private_participant
from codream_clients.privacy.plan import PlannedCharges, PrivacyPlan, PrivacySettings, plan_privacy
from codream_clients.privacy.releases import Releases
from codream_protocols.settings import SettingsError
from secure_codream.api.local import run_local
from secure_codream.configuration.assembly import make_participant
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.courses import make_course, model_layout
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.learners import make_learner
from secure_codream.configuration.limits import open_ledger
from secure_codream.configuration.reading import ConfigError
from secure_codream.experiments.cell import problem_of
from secure_codream.experiments.grid import read_grid
from tests.clients.own_models import GHOST_WRONG, PRIVATE_WRONG, WRONG, grouped, plain

TASK = {"shape": (1, 8, 8), "classes": 10}
PRIVACY = {"epsilon": 8.0, "batch_size": 16, "warm_up_epochs": 1, "accountant": "rdp"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards() -> list[LabelledImages]:
    train, _ = load_digits_data(0)
    return [train.subset(np.arange(30 * n, 30 * n + 30)) for n in range(3)]


def federation(**tables: Any) -> FederationConfig:
    return FederationConfig.model_validate({"task": TASK, "federation": {"rounds": 1}, **tables})


def client(model: str = "mlp_gn") -> ClientConfig:
    data = {"clients": 4, "per_client": 30}
    return ClientConfig.model_validate({"name": "a", "model": model, "device": "cpu", "data": data})


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes `build` into a module of the current folder; returns its reference."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(body: str) -> str:
        name = f"gate_part_{tmp_path.name.replace('-', '_')}"
        code = f"""
            from torch import nn

            class Mixed(nn.Linear):
                def forward(self, x):
                    return super().forward(x.flatten(1) - x.flatten(1).mean(0))

            def build(channels, size, classes):
                {body}
        """
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))
        return f"{name}:build"

    return write


# -- nothing is spent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["ReLU in place", "centred by the batch", "a weight past its layer", "a running mean"])
def test_a_refused_model_has_spent_nothing(what: str, shards: list[LabelledImages], tmp_path: Path) -> None:
    """Before, its first private step failed, or mixed records, with the whole budget charged for ever."""
    ledger, private = tmp_path / "privacy.jsonl", federation(privacy=PRIVACY, learning={"own_weight": 0.0})

    def releases(plan: PrivacyPlan, images: LabelledImages) -> Releases:
        return Releases(open_ledger(ledger, client(), private, plan, images).reserve)

    make, words = PRIVATE_WRONG[what]
    with pytest.raises(ConfigError, match=f"^model: mlp_gn: .*{words}"):
        make_participant(client(), private, model=make(), data=(shards[0], None), releases=releases)
    assert not ledger.exists()
    make_participant(client(), private, model=grouped(), data=(shards[0], None), releases=releases)  # control: mended
    assert ledger.exists()


def test_settings_that_are_refused_have_spent_nothing(shards: list[LabelledImages], tmp_path: Path) -> None:
    private = federation(privacy=PRIVACY, learning={"own_weight": 0.5})
    with pytest.raises(SettingsError, match=r"own_weight is 0.5 under"):
        make_participant(
            client(),
            private,
            data=(shards[0], None),
            releases=lambda plan, images: Releases(
                open_ledger(tmp_path / "privacy.jsonl", client(), private, plan, images).reserve
            ),
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "refused"), [("hooks", False), ("ghost", True), ("auto", True)])
def test_the_mode_that_will_be_used_is_tried(mode: Any, refused: bool, shards: list[LabelledImages]) -> None:
    settings = PrivacySettings(epsilon=8.0, batch_size=16, warm_up_epochs=1, accountant="rdp", mode=mode)
    plan = plan_privacy(settings, records=30, rounds=0)
    opened = []

    def releases() -> Releases:
        opened.append(plan)
        return Releases(PlannedCharges(plan).reserve)

    def join() -> None:
        learning, model = LearningSettings(own_weight=0.0), GHOST_WRONG["one layer twice"][0]()
        private_participant(
            learning,
            plan,
            model,
            shards[0],
            None,
            0,
            torch.device("cpu"),
            releases=releases,
            noise=NoiseSource(0),
            name="mine",
        )

    if refused:
        with pytest.raises(ValueError, match=r"^mine: .*mode 'ghost'"):
            join()
    else:
        join()
    assert bool(opened) is not refused


# -- every way in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("course", ["codream", "codream-fast", "fedavg", "scaffold"])
@pytest.mark.parametrize("what", ["a tuple", "detached", "a softmax", "half precision", "centred by the batch"])
def test_a_model_that_is_given_goes_through_the_gate(course: str, what: str, shards: list[LabelledImages]) -> None:
    make, words = WRONG[what]
    with pytest.raises(ConfigError, match=f"^model: the model given: .*{words}"):
        run_local(
            [make() if n == 1 else plain() for n in range(3)],
            shards,
            shards[0],
            classes=10,
            device="cpu",
            federation={"course": course, "rounds": 1},
        )


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (lambda: [plain()] * 3, "run_local: models: number 0 and number 1 are one object"),
        (lambda: [plain(), plain()], "run_local: found 2 models and 3 shards"),
    ],
)
def test_run_local_takes_one_model_for_each_shard(
    models: Callable[[], list[nn.Module]], words: str, shards: list[LabelledImages]
) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        run_local(models(), shards, shards[0], classes=10, device="cpu")


@pytest.mark.parametrize("course", ["codream", "fedavg"])
def test_a_model_that_is_named_goes_through_the_gate(
    course: str, mine: Callable[[str], str], shards: list[LabelledImages]
) -> None:
    name = mine("return Mixed(64, 10)")
    tables = (
        {"averaging": {"model": name, "layout": [["weight", [10, 64]], ["bias", [10]]]}} if course == "fedavg" else {}
    )
    config = federation(federation={"course": course, "rounds": 1}, **tables)
    with pytest.raises(ConfigError, match=rf"^model: {name}\(\): in eval mode the answer for one image changes"):
        make_learner(client(name), config, make_course(config), data=(shards[0], None))


def test_provision_tries_the_model_that_is_averaged(mine: Callable[[str], str]) -> None:
    name = mine("return Mixed(64, 10)")
    with pytest.raises(ConfigError, match=rf"^model: {name}\(\): in eval mode"):
        model_layout(federation(federation={"course": "fedavg", "rounds": 1}, averaging={"model": name}))


@pytest.mark.parametrize(
    ("body", "algorithm", "words"),
    [
        ("return Mixed(64, 10)", "isolated", "in eval mode the answer for one image changes"),
        (
            "return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 10))",
            "isolated-dp",
            "the first step of private training, mode 'hooks' .* inplace=False in 2",
        ),
        ("raise SystemExit(0)", "isolated", "failed: SystemExit: 0"),
    ],
)
def test_a_comparison_tries_models_before_any_cell_runs(
    body: str, algorithm: str, words: str, mine: Callable[[str], str]
) -> None:
    name = mine(body)
    compare = {"models": [name], "algorithms": [algorithm], "clients": 3, "per_client": 10, "test_limit": 20}
    with pytest.raises(ConfigError, match=rf"compare.models: {name}.*{words}"):
        read_grid(None, {"compare": compare})


# -- once, and where it will be used ------------------------------------------------------------------------------

GROUPED = "return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))"


@pytest.fixture
def tried_on(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices on which `build` has had models of somebody's own examined."""
    devices: list[torch.device] = []

    def images(shape: tuple[int, int, int], *, classes: int, device: torch.device) -> torch.Tensor:
        devices.append(device)
        return trial_images(shape, classes=classes, device=device)

    monkeypatch.setattr(zoo, "trial_images", images)
    return devices


def test_a_private_model_of_ones_own_is_examined_once(
    mine: Callable[[str], str], shards: list[LabelledImages], tried_on: list[torch.device]
) -> None:
    name, data = mine(GROUPED), (shards[0], None)
    make_participant(client(name), federation(privacy=PRIVACY, learning={"own_weight": 0.0}), data=data)
    assert tried_on == []  # `examine_private` has done it
    make_participant(client(name), federation(), data=data)
    assert len(tried_on) == 1  # control


def test_a_comparison_examines_models_where_they_are_trained(
    mine: Callable[[str], str], shards: list[LabelledImages], tried_on: list[torch.device]
) -> None:
    name, device = mine(GROUPED), torch.device("cpu", 0)
    compare = {"models": [name], "algorithms": ["isolated-dp"], "clients": 3, "per_client": 10, "test_limit": 20}
    found = read_grid(None, {"compare": compare})
    assert len(tried_on) == 1
    problem = replace(problem_of(found.cells[0]), device=device)
    problem.fresh_model(0)
    assert tried_on[-1] == device != torch.device("cpu")


# -- docs/federations.md ------------------------------------------------------------------------------------------

SECTION = (Path(__file__).parents[2] / "docs" / "federations.md").read_text().split("## A model of your own")[1]
SECTION = SECTION.split("\n## ")[0]


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(ModelRefused) as caught:
        check()
    return str(caught.value)


def test_every_refusal_of_the_page_is_one_that_is_given() -> None:
    images = trial_images((1, 8, 8), classes=10, device=torch.device("cpu"))
    given = [refusal(lambda: require_own_weights([plain()] * 2))]
    for make, _ in WRONG.values():
        given.append(refusal(partial(examine, make(), images, classes=10)))
    for make, _ in (*PRIVATE_WRONG.values(), *GHOST_WRONG.values()):
        given.append(refusal(partial(examine_private, make(), images, classes=10, name="mine")))
    listed = re.findall(r"^\| `([^|]*)` \|", SECTION, re.MULTILINE)
    assert len(listed) == 21
    assert [phrase for phrase in listed if not any(phrase in text for text in given)] == []


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_the_pages_model_passes_also_under_privacy(shape: tuple[int, int, int]) -> None:
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0], names)
    images = trial_images(shape, classes=10, device=torch.device("cpu"))
    examine_private(names["build"](shape[0], shape[1], 10), images, classes=10, name="mine:build")
