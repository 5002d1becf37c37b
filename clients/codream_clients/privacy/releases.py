"""What a client's mechanisms have released: paid for once, kept, and never paid for again.

What has been released is private by the mechanism's guarantee, so it may lie on disk: a client that starts again goes
on with it, and its budget with the same charge. The charge is reserved before the mechanism runs; if the process ends
between the two, the charge is spent and nothing was released, which errs on the side of privacy.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from codream_clients.privacy.accounting import SampledGaussian
from codream_protocols.durable import written_whole

Reserve = Callable[[SampledGaussian], None]
"""Called before a mechanism runs; raises if the budget does not allow it (`Ledger.reserve`)."""
Release = Mapping[str, torch.Tensor]


class ReleaseError(RuntimeError):
    """A release that was kept cannot be read back."""


class Releases:
    """Runs mechanisms, each within its charge.

    Args:
        reserve: asked before each.
        folder: where releases are kept; None keeps none.
        key: everything that defines them but their purpose; another key is another release.
        spent: what earlier processes have reserved, from the ledger.
    """

    def __init__(
        self, reserve: Reserve, folder: Path | None = None, key: str = "", spent: Sequence[SampledGaussian] = ()
    ) -> None:
        self.reserve, self.spent = reserve, tuple(spent)
        self._folder, self._key = folder, key

    def once(self, charge: SampledGaussian, mechanism: Callable[[], Release]) -> Release:
        """What the mechanism has released before, or releases now, once `charge` is reserved; on the CPU.

        Raises:
            ReleaseError: what was released before is damaged. It is not made anew, which would cost the charge again.
        """
        if self._folder is None:
            self.reserve(charge)
            return mechanism()
        path = self._folder / f"{hashlib.sha256(f'{self._key}|{charge!r}'.encode()).hexdigest()}.pt"
        self._folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                self.reserve(charge)
                _keep(path, {name: tensor.detach().cpu() for name, tensor in mechanism().items()})
        try:
            release: Release = torch.load(path, weights_only=True)
        except Exception as error:  # whatever a damaged archive leads torch to raise
            raise ReleaseError(
                f"{path}: found no sound release ({type(error).__name__}); put the file back from a copy, or "
                "delete it: then the mechanism runs once more, if the budget allows its charge again"
            ) from error
        return release


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for whoever holds the lock; a process that dies lets it go."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keep(path: Path, release: Release) -> None:
    """On the disk, and whole, before it counts: it has been paid for."""
    with written_whole(path) as file:
        torch.save(release, file)
