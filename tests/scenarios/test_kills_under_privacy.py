"""Who trains privately is killed, as a process, at random instants: the same charges, all steps, and no refusal."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import pytest

pytest.importorskip("torch")

from codream_clients.privacy import releases, training
from codream_clients.privacy.ledger import Ledger, Spender
from codream_clients.privacy.noise import Stream
from codream_clients.privacy.plan import plan_privacy
from secure_codream import cli
from tests.secure_codream.test_crashes_under_privacy import PLAN, model, process
from tests.system.night import Night, Running
from tests.system.processes import SECURE_CODREAM

TRAINING = plan_privacy(replace(PLAN.settings, warm_up_epochs=12, round_epochs=4), records=24, rounds=1)
EPSILON, STEPS = 8.0, 8
RING = {"model": "mlp_gn", "epsilon": EPSILON, "delta": 1e-4, "sample_rate": 0.2, "batch_size": 200, "steps": STEPS}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "secure_codream.deployment.client", "secure_codream.deployment.server"])


def ledger(folder: Path, federation: str, member: str) -> Ledger:
    found = Ledger.look(folder / "privacy.jsonl", by=Spender(federation, member), budget=None)
    assert found is not None
    return found


# -- a client's own training --------------------------------------------------------------------------------------


def life(folder: Path) -> None:
    """A process of a client: notes how many steps each training has left as it starts, and what noise they draw."""
    releases.KEPT_EVERY = 0.0
    ended: list[str] = []
    with (folder / "told.jsonl").open("a", buffering=1) as told:
        normal, sgd = Stream.normal, training.private_sgd

        def noted(self: Stream, count: int) -> Any:
            found = normal(self, count)
            told.write(json.dumps({"noise": found.tobytes()[:16].hex()}) + "\n")
            return found

        def counted(*arguments: Any, **options: Any) -> None:
            told.write(json.dumps({"of": len(ended), "left": options["steps"]}) + "\n")
            sgd(*arguments, **options)

        Stream.normal, training.private_sgd = noted, counted  # type: ignore[method-assign]
        process(folder, ended, TRAINING)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_a_training_killed_at_random_instants_goes_on_with_new_noise_within_its_charges(
    tmp_path: Path, kills: int
) -> None:
    """A life is at most half as long as the whole takes; as many runs, one after the other, as so many kills take."""
    chance = random.Random(kills)

    def lived(folder: Path, seconds: float | None = None) -> bool:
        """Whether it came to its end."""
        folder.mkdir(exist_ok=True)
        one = PROCESSES.Process(target=life, args=(folder,))
        one.start()
        one.join(seconds)
        one.kill()
        one.join()
        return one.exitcode == 0

    killed, folders = 0, [tmp_path / "0", tmp_path / "1"]
    assert lived(folders[0])  # and what all processes begin with is imported
    started = time.monotonic()
    assert lived(folders[1])
    whole = time.monotonic() - started
    while killed < kills:
        folders.append(tmp_path / str(len(folders)))
        while killed < kills and not lived(folders[-1], chance.uniform(0, whole / 2)):
            killed += 1
        assert lived(folders[-1])  # as it stands, also where it is over
    for folder in folders:
        assert Counter(ledger(folder, "lungs", "alice").charges) == Counter(TRAINING.charges)
        assert_all_steps(folder)


def assert_all_steps(folder: Path) -> None:
    """Each training goes on where it was, but for the step that was not kept yet; no noise is drawn twice."""
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    noise = [line["noise"] for line in told if "noise" in line]
    assert len(noise) == len(set(noise))
    tensors = len([*model().parameters()])
    for number, charge in enumerate(TRAINING.charges[1:]):
        starts = [place for place, line in enumerate(told) if line.get("of") == number]
        left = [told[place]["left"] for place in starts]
        ends = [place for place, line in enumerate(told) if "left" in line] + [len(told)]
        made = [(min(end for end in ends if end > place) - place - 1) / tensors for place in starts]
        assert left[0] == charge.steps
        for (before, after), steps in zip(pairwise([*left, 0]), made, strict=True):
            assert before - after <= steps < before - after + 2, (folder, number, left, made)


# -- a federation ---------------------------------------------------------------------------------------------------


def typed(words: list[str], screen: Path) -> None:
    """In a process: the command `secure-codream`, with what it says in a file."""
    file = os.open(screen, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.argv = ["secure-codream", *words]
    cli.main()


class Forked:
    """A process that begins with all imports done, which take the most of what starting a party costs."""

    def __init__(self, words: list[str], screen: Path) -> None:
        self._process = PROCESSES.Process(target=typed, args=(words, screen))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, sig)

    def kill(self) -> None:
        self._process.kill()


class ForkedNight(Night):
    def process(self, command: list[str | Path], screen: TextIO) -> Running:
        return Forked([str(word) for word in command[len(SECURE_CODREAM) :]], Path(screen.name))


@pytest.mark.system
@pytest.mark.parametrize(
    ("kills", "rounds"), [(2, 2), pytest.param(50, 8, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)])]
)
def test_a_ring_whose_parties_are_killed_at_random_instants(tmp_path: Path, kills: int, rounds: int) -> None:
    """Whoever it is: all rounds are made; a step costs each client once, and only where it had begun."""
    night = ForkedNight(
        tmp_path,
        rounds=rounds,
        seed=kills,
        course="dp-sgd",
        tables={"dp_sgd": {**RING, "spare_rounds": kills}},
        client={"model": "mlp_gn", "policy": {"shared_noise": True}},
        beat=0.5,
        lost_after=60.0,
    )
    with night.falling():
        night.start("server", *night.NAMES)
        for number in range(kills):
            night.some_events_later(20)
            assert not night.of("federation_finished"), "too short for so many kills"
            name = ("server", night.chance.choice(night.NAMES))[number % 2]
            night.kill(name)
            night.start(name)
        night.finish()
    assert [event["number"] for event in night.of("round_finished")] == [*range(1, rounds + 1)]
    begun = {(event["epoch"], event["step"]) for event in night.of("step_started")}
    for name in night.NAMES:
        found = ledger(night.party(name), "night", name)
        assert found.spent <= EPSILON and not any(account.open for account in found.accounts.values())
        assert rounds * STEPS <= len(found.charges) <= len(begun) and len(set(found.charges)) == 1
        assert not [line for line in night.log(name) if line["event"] == "computation-failed"]
