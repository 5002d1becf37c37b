"""Where the noise of privacy, and the choice of records, come from.

In deployment both are seeded from the operating system's entropy, afresh for every mechanism, so that nobody can
repeat them: a client's configured seed fixes its weights, never its noise. An experiment that must repeat gives a seed,
and with it no protection against those who know the seed. The generators are fast, not cryptographic (Mersenne Twister,
PCG64); `secure_mode` takes one that is.

torch seeds its Mersenne Twister with 32 bits, whatever it is given: few enough to try them all, and so to find out the
noise of a released model. Here its whole state is drawn.
"""

import secrets
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_TWISTER_WORDS = 624
_TWISTER_AT = 24  # where they begin in torch's state, 8 bytes each: after the seed, what is left, and the next


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
        source = self.numpy(purpose)
        if device.type == "cpu":
            return _twister(source.integers(1 << 32, size=_TWISTER_WORDS, dtype=np.uint64))
        return torch.Generator(device=device).manual_seed(int(source.integers(1 << 63)))  # Philox: a key of 64 bits


def _twister(words: NDArray[np.uint64]) -> torch.Generator:
    """Torch's Mersenne Twister in the state of these 624 words of 32 bits, before its first number."""
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    state.numpy()[_TWISTER_AT:][: words.nbytes] = words.view(np.uint8)
    generator.set_state(state)
    return generator


def _cryptographic_generator() -> torch.Generator:
    try:
        import torchcsprng  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise SecureModeUnavailable(
            "secure_mode: found no torchcsprng, which Opacus takes cryptographic noise from; install a build of it for "
            "this torch, or leave secure_mode out: noise is then seeded from the operating system's entropy"
        ) from error
    return torchcsprng.create_random_device_generator("/dev/urandom")  # type: ignore[no-any-return,unused-ignore]
