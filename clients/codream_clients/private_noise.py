"""Where the noise of privacy, and the choice of records, come from.

In deployment both are seeded from the operating system's entropy, afresh for every mechanism, so that nobody can
repeat them: a client's configured seed fixes its weights, never its noise. An experiment that must repeat gives a seed,
and with it no protection against those who know the seed. The generators are fast, not cryptographic (Mersenne Twister,
PCG64); `secure_mode` takes one that is.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import torch


class SecureModeUnavailable(RuntimeError):
    """`secure_mode` was asked for, and the package that it needs is not there."""


@dataclass(frozen=True)
class NoiseSource:
    """Generators for the mechanisms of one client.

    Attributes:
        seed: None, as in deployment, takes entropy; a number repeats, for experiments.
        secure: torch's generators are cryptographic.

    Raises:
        SecureModeUnavailable: secure without torchcsprng.
    """

    seed: int | None = None
    secure: bool = False

    def __post_init__(self) -> None:
        if self.secure:
            _cryptographic_generator()

    def numpy(self, purpose: int) -> np.random.Generator:
        """A generator for one mechanism; with a seed, `purpose` keeps mechanisms apart."""
        return np.random.default_rng(secrets.randbits(256) if self.seed is None else [self.seed, purpose])

    def torch(self, purpose: int, device: torch.device) -> torch.Generator:
        """The same for tensors on `device`."""
        if self.secure:
            return _cryptographic_generator()
        seed = int(self.numpy(purpose).integers(1 << 63))
        return torch.Generator(device=device).manual_seed(seed)


def _cryptographic_generator() -> torch.Generator:
    try:
        import torchcsprng  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise SecureModeUnavailable(
            "secure_mode: found no torchcsprng, which Opacus takes cryptographic noise from; install a build of it for "
            "this torch, or leave secure_mode out: noise is then seeded from the operating system's entropy"
        ) from error
    return torchcsprng.create_random_device_generator("/dev/urandom")  # type: ignore[no-any-return,unused-ignore]
