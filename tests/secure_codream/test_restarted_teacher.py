"""Who makes and labels a client's dreams after a restart is who would without one, and so is what it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from msgspec.structs import replace

from codream_clients.data.datasets import LabelledImages
from secure_codream.configuration.courses import make_course
from secure_codream.configuration.learners import make_learner
from secure_codream.deployment.checkpoint import CheckpointError, read_checkpoint
from secure_codream.deployment.files import MODEL, TEACHER, Appended, EventLog
from secure_codream.deployment.outputs import Counted, Outputs
from secure_codream.reports.files import write_whole
from tests.secure_codream.models import DESCRIBED, small_model, write_checkpoint
from tests.secure_codream.test_learning import client, federation

DREAMS = np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32)
EPOCHS = 4


def published(number: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(number)
    return {"dreams": DREAMS + number, "soft_labels": 5 * rng.standard_normal((16, 10)).astype(np.float32)}


class Process:
    """A client's learning, from its folder on, as `run_client` prepares it.

    Args:
        folder: the client's.
        learning: its federation's `[learning]`.
        certified: how many epochs are in its journal.
        prepares: whether it gets so far as to learn those that it has missed.
    """

    def __init__(self, folder: Path, learning: dict[str, Any], certified: int = 0, *, prepares: bool = True) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng(1)
        images = rng.standard_normal((24, 1, 8, 8)).astype(np.float32)
        data = LabelledImages(images, np.arange(24) % 10, 10)
        quick = {"warm_up_epochs": 2, "distil_epochs": 2, "local_epochs": 1, "held_back": 0.0}
        config = federation(learning={**quick, **learning})
        self.failures: list[str] = []
        figures = EventLog(Appended(folder / "metrics.jsonl"))
        self.outputs = Outputs(
            folder, figures, sums=False, tells=True, failed=lambda name, error: self.failures.append(name)
        )
        self.learning = make_learner(
            client(),
            config,
            make_course(config),
            model=small_model(),
            data=(data, None),
            goes_on=self.outputs.exists,
            on_metrics=self.outputs.keep,
        )
        learning_, out = self.learning, self.outputs
        learnt = out.take(learning_.model, DESCRIBED, certified, learning_.judge, learning_.teacher)
        _ = learning_.begin(learnt, out.teacher) if out.exists else learning_.warm_up()
        self.learner = Counted(learning_.learner, out)
        for number in range(1, certified + 1) if prepares else ():
            (learning_.recall if number <= learnt else self.learner.learn)(number, published(number))

    def learn(self, *numbers: int) -> None:
        for number in numbers:
            self.learner.learn(number, published(number))

    @property
    def known(self) -> tuple[list[torch.Tensor], np.ndarray[Any, Any], list[float]]:
        """The model's weights, what it says of dreams, and the batches in its window."""
        found: Any = self.learning.learner
        who = found._participant
        weights = [one.clone() for one in who.model.state_dict().values()]
        return weights, who.soft_labels(DREAMS).numerators, [float(dreams[0, 0, 0, 0]) for dreams, _ in who._window]


def alike(one: Process, other: Process) -> bool:
    (weights, labels, window), (others, other_labels, other_window) = one.known, other.known
    same = all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
    return same and np.array_equal(labels, other_labels) and window == other_window


LEARNINGS = [
    {"teacher": "warm-up"},
    {"teacher": "trained", "training_rounds": 1},
    {"teacher": "trained"},
    {"teacher": "current"},
]


@pytest.mark.parametrize("stops", [0, 1, 3])
@pytest.mark.parametrize("learning", LEARNINGS, ids=lambda found: "-".join(map(str, found.values())))
def test_a_restart_changes_neither_teacher_nor_window_nor_model(
    tmp_path: Path, learning: dict[str, Any], stops: int
) -> None:
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    through.mkdir()
    stopped.mkdir()
    whole = Process(through, learning)
    whole.learn(*range(1, EPOCHS + 1))
    Process(stopped, learning).learn(*range(1, stops + 1))
    again = Process(stopped, learning, certified=stops)
    again.learn(*range(stops + 1, EPOCHS + 1))
    assert alike(again, whole)
    assert (stopped / TEACHER).exists() is (learning["teacher"] != "current")
    if (stopped / TEACHER).exists():
        assert (stopped / TEACHER).read_bytes() == (through / TEACHER).read_bytes()


def test_a_process_killed_between_both_files_learns_that_epoch_again(tmp_path: Path) -> None:
    """The teacher's weights are newer than the model then; killed once more before it has, it does so again."""
    learning = {"teacher": "trained"}
    through, killed = tmp_path / "through", tmp_path / "killed"
    through.mkdir()
    killed.mkdir()
    whole = Process(through, learning)
    whole.learn(1, 2, 3)
    first = Process(killed, learning)
    first.learn(1, 2)
    model = (killed / MODEL).read_bytes()
    first.learn(3)
    (killed / MODEL).write_bytes(model)
    begun = Process(killed, learning, certified=3, prepares=False)
    assert read_checkpoint(killed / MODEL).description.taught == 2 and begun.outputs.learnt == 2
    assert alike(Process(killed, learning, certified=3), whole)
    found = read_checkpoint(killed / MODEL).description
    assert (found.learnt, found.taught) == (3, 3)


def test_a_model_is_not_written_before_the_teacher_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, {"teacher": "trained", "training_rounds": 1})
    before = (tmp_path / MODEL).read_bytes()
    usual, full = write_whole, [TEACHER]

    def write(path: Path, content: bytes) -> None:
        if path.name in full:
            raise OSError(28, "No space left on device")
        usual(path, content)

    monkeypatch.setattr("secure_codream.deployment.outputs.write_whole", write)
    process.learn(1, 2)
    assert (tmp_path / MODEL).read_bytes() == before and set(process.failures) == {TEACHER}
    full.clear()
    process.learn(3)
    process.outputs.settle()
    assert read_checkpoint(tmp_path / TEACHER).description.learnt == 1
    found = read_checkpoint(tmp_path / MODEL).description
    assert (found.learnt, found.taught) == (3, 1)


def test_a_teacher_that_is_missing_or_of_another_epoch_is_refused(tmp_path: Path) -> None:
    learning = {"teacher": "trained", "training_rounds": 1}
    Process(tmp_path, learning).learn(1, 2)
    (tmp_path / TEACHER).rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors: found no such file.*restore both"):
        Process(tmp_path, learning, certified=2)
    for description, said in (
        (replace(DESCRIBED, learnt=0), "weights that epoch 0 left; .* those that epoch 1 left"),
        (replace(DESCRIBED, learnt=2), "weights that epoch 2 left; .* those that epoch 1 left"),
        (replace(DESCRIBED, learnt=9), "weights that have learnt 9 epochs, 2 are in the journal"),
        (replace(DESCRIBED, charter="cd" * 32), "trained under charter cdcd"),
    ):
        write_checkpoint(tmp_path / TEACHER, small_model(), description)
        with pytest.raises(CheckpointError, match=said):
            Process(tmp_path, learning, certified=2)
    (tmp_path / "kept").rename(tmp_path / TEACHER)
    Process(tmp_path, learning, certified=2)


def test_the_student_of_a_client_makes_the_views_that_are_labelled() -> None:
    for views_by in ("affine", "cutmix"):
        config = federation(dreams={"views": 1, "views_by": views_by, "adaptive_weight": 1.0})
        who = client(data={"source": "digits", "per_client": 20})
        learner: Any = make_learner(who, config, make_course(config)).learner
        assert learner._adaptive.student._settings.views_by == views_by
