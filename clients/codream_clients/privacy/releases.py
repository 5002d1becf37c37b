"""What a client's mechanisms have released: paid for once, kept, and never paid for again.

What has been released is private by the mechanism's guarantee, so it may lie on disk: a client that starts again goes
on with it, and its budget with the same charge. The charge is reserved before the mechanism runs, and what came of it
is on the disk, and written down as released, before anybody uses it. A process may end at any point:

    before the charge is durable     nothing has run
    before a release is on the disk  nothing has come out: the mechanism runs anew, with new noise, within its charge
    after it                         the release is there, and is used

A mechanism that fails by itself has come to something, which others see: another try is paid for again.

A training keeps what it has reached, now and then (`Iterates`). These weights are noised already, and the charge, which
is for all steps together, covers seeing them; they count as released. It goes on from the last of them, for the steps
that are left, with new noise and new samples. What had been computed after them was seen by nobody.

A release that was written down and is not on the disk any more is paid for again, if the budget allows it.
"""

import fcntl
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from codream_clients.privacy.accounting import SampledGaussian
from codream_protocols.durable import written_whole

Charge = Callable[[SampledGaussian], None]
Release = Mapping[str, torch.Tensor]
KEPT_EVERY = 10.0
"""Seconds of training after which what it has reached is kept."""
_STEPS = "steps done"


class ReleaseError(RuntimeError):
    """A release that was kept cannot be read back."""


class Iterates:
    """What a training has reached, so that it need not begin anew where its process ends; nothing without a file."""

    def __init__(self, path: Path | None = None, kept: Callable[[], object] = lambda: None) -> None:
        self._path, self._tell, self._kept = path, kept, time.monotonic()

    @property
    def exist(self) -> bool:
        """Whether an earlier process has kept some."""
        return self._path is not None and self._path.exists()

    def last(self) -> tuple[int, Release | None]:
        """How many steps are done, and the weights after them; none are, and no weights, where nothing was kept."""
        if self._path is None or not self.exist:
            return 0, None
        found = dict(_read(self._path))
        return int(found.pop(_STEPS)), found

    def reached(self, steps: int, weights: Callable[[], Release]) -> None:
        """Keep the weights after so many steps, if that is due."""
        if self._path is not None and time.monotonic() - self._kept >= KEPT_EVERY:
            _keep(self._path, {**weights(), _STEPS: torch.tensor(steps)})
            self._tell()
            self._kept = time.monotonic()

    def drop(self) -> None:
        """Forget them: the training has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Releases:
    """Runs mechanisms, each within its charge.

    Args:
        reserve: called before a mechanism runs; raises if the budget does not allow it (`Ledger.reserve`).
        folder: where releases are kept; None keeps none.
        key: everything that defines them but their purpose; another key is another release.
        released: called once a release is on the disk (`Ledger.released`).
        spent: what earlier processes have reserved, and something came of.
        unreleased: what they have reserved, and nothing came of.
        resumes: whether a training goes on from what it had reached; noise that repeats must not.
    """

    def __init__(
        self,
        reserve: Charge,
        folder: Path | None = None,
        key: str = "",
        *,
        released: Charge = lambda charge: None,
        spent: Sequence[SampledGaussian] = (),
        unreleased: Sequence[SampledGaussian] = (),
        resumes: bool = False,
    ) -> None:
        self._reserve, self._released, self._unreleased = reserve, released, Counter(unreleased)
        self._folder, self._key, self._resumes = folder, key, resumes
        self.spent = tuple(charge for charge in spent if not self._iterates(charge).exist)

    def once(self, charge: SampledGaussian, mechanism: Callable[[Iterates], Release]) -> Release:
        """What the mechanism has released before, or releases now, once `charge` is reserved; on the CPU.

        Raises:
            ReleaseError: what was released before is damaged. It is not made anew, which would cost the charge again.
        """
        if self._folder is None:
            return mechanism(self._begin(charge))
        path = self._path(charge)
        self._folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                iterates = self._begin(charge)
                with self._outcome(charge, iterates):
                    released = mechanism(iterates)
                _keep(path, released)
                iterates.drop()
            self._released(charge)
        return _read(path)

    def run(self, charge: SampledGaussian, training: Callable[[Iterates], Release]) -> Release:
        """What a training has come to, which the caller keeps, once `charge` is reserved."""
        iterates = self._begin(charge)
        with self._outcome(charge, iterates):
            reached = training(iterates)
        self._released(charge)
        iterates.drop()
        return reached

    @contextmanager
    def _outcome(self, charge: SampledGaussian, iterates: Iterates) -> Iterator[None]:
        """That a mechanism failed is an outcome, which others see: a second try is paid for again."""
        try:
            yield
        except Exception:
            self._released(charge)
            iterates.drop()
            raise

    def _begin(self, charge: SampledGaussian) -> Iterates:
        """Within the charge of an earlier process, if nothing came of it yet, or iterates to go on from."""
        iterates = self._iterates(charge)
        if not iterates.exist:
            if self._unreleased[charge]:
                self._unreleased[charge] -= 1
            else:
                self._reserve(charge)
        return iterates

    def _path(self, charge: SampledGaussian) -> Path:
        assert self._folder is not None  # noqa: S101 - asked for with a folder alone
        return self._folder / f"{hashlib.sha256(f'{self._key}|{charge!r}'.encode()).hexdigest()}.pt"

    def _iterates(self, charge: SampledGaussian) -> Iterates:
        if self._folder is None or not self._resumes:
            return Iterates()
        return Iterates(self._path(charge).with_suffix(".part.pt"), lambda: self._released(charge))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for whoever holds the lock; a process that dies lets it go."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> Release:
    try:
        release: Release = torch.load(path, weights_only=True)
    except Exception as error:  # whatever a damaged archive leads torch to raise
        raise ReleaseError(
            f"{path}: found no sound release ({type(error).__name__}); put the file back from a copy, or "
            "delete it: then the mechanism runs once more, if the budget allows its charge again"
        ) from error
    return release


def _keep(path: Path, release: Release) -> None:
    """On the disk, and whole, before it counts: it has been paid for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        torch.save({name: tensor.detach().cpu() for name, tensor in release.items()}, file)
