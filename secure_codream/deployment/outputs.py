"""What a client writes as it learns: `model.safetensors`, the best one, what teaches, figures, sums, and failures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from codream_clients.learning.participant import Metrics, Teacher
from codream_protocols.course import Learner, Publication
from secure_codream.deployment.checkpoint import CheckpointError, checkpoint_bytes, go_on
from secure_codream.deployment.description import Description, Figures, figures_of
from secure_codream.deployment.files import BEST, MODEL, SUMS, TEACHER, EventLog, sums_bytes
from secure_codream.reports.files import write_whole

if TYPE_CHECKING:
    from torch import nn

    from codream_clients.learning.judge import Judge, Weights


class OutputsUnwritten(RuntimeError):
    """The federation is over, and what was learnt from it is not on disk."""


class Outputs:
    """The model and the sums on disk after each epoch, and how many epochs they have learnt.

    The thread that learns cannot be stopped: it may outlive its client, whose folder another process has taken over by
    then. So nothing is written after `close`. A disk that fails stops nobody: what could not be written is tried again
    with the next epoch, and at the end.

    The weights that make and label dreams, where they are others, are written before those of the model, which say
    whose epoch they must be of. A process that is killed in between leaves newer ones: it learns that epoch again.

    Args:
        folder: the client's.
        figures: where metrics go.
        sums: whether what was published is kept as a file.
        tells: whether the model's file may say what was measured.
        failed: called with what cannot be written, and why.
    """

    def __init__(
        self,
        folder: Path,
        figures: EventLog,
        *,
        sums: bool,
        tells: bool,
        failed: Callable[[str, OSError], object],
    ) -> None:
        self.exists = (folder / MODEL).is_file()
        self.learnt = 0
        self.teacher: Teacher | None = None
        """The one that an earlier process had, where it is another than the model."""
        self._folder, self._figures, self._sums, self._tells, self._failed = folder, figures, sums, tells, failed
        self._model: nn.Module | None = None
        self._description: Description | None = None
        self._measured: Figures | None = None
        self._judge: Judge | None = None
        self._best: Weights | None = None
        self._teaches: Callable[[], nn.Module] | None = None
        self._kept_teacher: nn.Module | None = None
        self._taught = 0  # the epoch that left it
        self._unwritten: dict[str, bytes] = {}
        self._lock, self._closed = Lock(), False

    def take(
        self,
        model: nn.Module | None,
        description: Description | None,
        certified: int,
        judge: Judge | None = None,
        teaches: Callable[[], nn.Module] | None = None,
    ) -> int:
        """Go on with the weights that are there, if any; returns how many certified epochs they have learnt.

        Args:
            model: what learns; None where nothing does.
            description: the model's.
            certified: how many epochs are.
            judge: gets the best weights that are there, and has those to be written.
            teaches: what makes and labels dreams, kept beside the model and read into `teacher`; None where it is the
                model as it is.

        Raises:
            CheckpointError: they are not of this model under this charter, or have learnt more than `certified` epochs;
                or what teaches is missing, or not of the epoch that the model's file names.
        """
        self._model, self._description, self._judge, self._teaches = model, description, judge, teaches
        if self.exists and model is not None and description is not None:
            if judge is not None and (self._folder / BEST).is_file():
                judge.judge(model, self._read(BEST, model, description, certified).learnt)
                self._best = judge.weights
            found = self._read(MODEL, model, description, certified)
            self.learnt = found.learnt
            if teaches is not None:
                self._take_teacher(copy.deepcopy(model), found, certified)
        return self.learnt

    def _take_teacher(self, model: nn.Module, pupil: Description, certified: int) -> None:
        path = self._folder / TEACHER
        if not path.is_file():
            raise CheckpointError(
                f"{path}: found no such file; the weights that make and label this client's dreams are needed beside "
                f"{MODEL}: restore both from one copy, or move {MODEL} away to train anew"
            )
        left_by = self._read(TEACHER, model, pupil, certified).learnt
        if left_by != pupil.taught and left_by <= pupil.learnt:
            raise CheckpointError(
                f"{path}: weights that epoch {left_by} left; {MODEL} goes with those that epoch {pupil.taught} left: "
                "restore both from one copy, or move both away to train anew"
            )
        self.teacher = Teacher(model, pupil.taught)
        self._kept_teacher, self._taught = model, left_by

    def _read(self, name: str, model: nn.Module, description: Description, certified: int) -> Description:
        path = self._folder / name
        found = go_on(path, model, description)
        if found.learnt > certified:
            raise CheckpointError(
                f"{path}: weights that have learnt {found.learnt} epochs, {certified} are in the journal; "
                "restore the journal that belongs to them, or move the weights away to train anew"
            )
        return found

    def keep(self, metrics: Metrics) -> None:
        """Write figures and weights; the weights say up to which epoch they have learnt."""
        if self._tells:
            self._measured = figures_of(metrics)
        with self._lock:
            if not self._closed:
                try:
                    # A participant counts the rounds of its process; what a person reads are those of the federation.
                    self._figures({"event": "metrics", **vars(metrics), "rounds": self.learnt})
                except OSError as error:
                    self._failed("metrics.jsonl", error)
        self.write()

    def write(self, publication: Publication | None = None) -> None:
        """Write the weights, and what was published."""
        found: dict[str, bytes] = {}
        if self._model is not None and self._description is not None:
            description = replace(self._description, learnt=self.learnt, figures=self._measured)
            if self._teaches is not None and (teacher := self._teaches()) is not self._kept_teacher:
                self._kept_teacher, self._taught = teacher, self.learnt
                found[TEACHER] = checkpoint_bytes(teacher, replace(description, figures=None))
            taught = self._taught
            if self.teacher is not None and taught > self.learnt:  # the epoch that left it is to be learnt again
                taught = self.teacher.since
            found[MODEL] = checkpoint_bytes(self._model, replace(description, taught=taught))
            if self._judge is not None and self._judge.weights is not self._best:
                self._best = self._judge.weights
                found[BEST] = checkpoint_bytes(self._best, replace(description, learnt=self._judge.best_round))
        if self._sums and publication is not None:
            found[SUMS] = sums_bytes(publication)
        with self._lock:
            self._unwritten |= found
            self._write_out()

    def put(self, name: str, content: bytes) -> None:
        """Write another file of the folder in the same way."""
        with self._lock:
            self._unwritten[name] = content
            self._write_out()

    def settle(self) -> None:
        """The federation is over: try again what could not be written.

        Raises:
            OutputsUnwritten: it cannot be written still.
        """
        with self._lock:
            self._write_out()
            if self._unwritten:
                raise OutputsUnwritten(
                    f"{self._folder}: {' and '.join(sorted(self._unwritten))} cannot be written, so what was learnt is "
                    "not on disk; make room and start this client again: it learns it once more from its journal"
                )

    def close(self) -> None:
        """Let go of the folder: returns once nothing is being written, and nothing will be."""
        with self._lock:
            self._closed = True

    def _write_out(self) -> None:
        if self._closed:
            return
        for name, content in sorted(self._unwritten.items(), key=lambda one: one[0] != TEACHER):
            if name == MODEL and TEACHER in self._unwritten:
                continue  # it would name weights that are not there
            try:
                write_whole(self._folder / name, content)
            except OSError as error:
                self._failed(name, error)
            else:
                del self._unwritten[name]


class Counted:
    """A learner whose outputs are written, and say which epochs they have learnt."""

    def __init__(self, learner: Learner, outputs: Outputs) -> None:
        self._learner, self._outputs = learner, outputs

    def compute(self, task: Any, spec: Any) -> Any:
        """See `Learner`."""
        return self._learner.compute(task, spec)

    def learn(self, number: int, publication: Publication) -> None:
        """See `Learner`."""
        self._outputs.learnt = number  # what the learner writes on its way already is of this epoch
        self._learner.learn(number, publication)
        self._outputs.write(publication)
