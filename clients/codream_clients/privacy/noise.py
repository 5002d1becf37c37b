"""Where the noise of privacy, the choice of records, and all else that must not be foretold come from.

Everything is drawn from AES-256 in counter mode (NIST SP 800-38A) under a key of its own for each mechanism. In
deployment the operating system gives the key, so that nobody can repeat a draw: a client's configured seed fixes its
weights, never its noise. An experiment that must repeat gives a seed, and with it no protection against those who know
it. A generator that is fast alone, as torch's Mersenne Twister, would do for statistics and not for privacy: its draws
are linear in its state, so whoever knows most of a step's noise computes the rest.

What is released is the noise, and it is made here in double precision. Of a layer's dropout and of how images vary
nothing is released, and torch takes neither from a stream: there its own generator begins, for each part of a batch,
in a state that is drawn as a whole (its seed of 32 bits could be searched).
"""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

KEY_BYTES = 32
_TWISTER_WORDS = 624
_TWISTER_AT = 24  # where they begin in torch's state, 8 bytes each: after the seed, what is left, and the next

Floats = NDArray[np.float64]


class Stream:
    """Random numbers that follow from a key of 32 bytes and, to whoever does not have it, from nothing.

    A key is used for one stream alone. Raises `ValueError` for a key of another length.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; {KEY_BYTES} are needed")
        self._cipher = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._cipher.update(bytes(count))

    def uniform(self, count: int) -> Floats:
        """Numbers in (0, 1), never 0 or 1, on a grid of 2^-52: (count,)."""
        words = np.frombuffer(self.bytes(8 * count), dtype="<u8")
        return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> Floats:
        """Standard normal numbers, (count,), after Box and Muller (1958)."""
        half = -(-count // 2)
        length = np.sqrt(-2 * np.log(self.uniform(half)))
        angle = 2 * np.pi * self.uniform(half)
        return np.concatenate([length * np.cos(angle), length * np.sin(angle)])[:count]

    def generator(self) -> torch.Generator:
        """Torch's Mersenne Twister on the CPU, its whole state drawn."""
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        words = np.frombuffer(self.bytes(4 * _TWISTER_WORDS), dtype="<u4").astype(np.uint64)
        state.numpy()[_TWISTER_AT:][: words.nbytes] = words.view(np.uint8)
        generator.set_state(state)
        return generator

    @contextmanager
    def hidden_draws(self, device: torch.device) -> Iterator[None]:
        """What layers on `device` draw meanwhile, as dropout does, nobody can foretell; afterwards all is as it was."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.set_rng_state(self.generator().get_state())
            if device.type == "cuda":  # Philox: a key of 64 bits
                torch.cuda.default_generators[device.index or 0].manual_seed(int.from_bytes(self.bytes(8)) >> 1)
            yield


@dataclass(frozen=True)
class NoiseSource:
    """Streams for the mechanisms of one client.

    Attributes:
        seed: None, as in deployment, takes the operating system's randomness; a number repeats, for experiments.
    """

    seed: int | None = None

    def stream(self, purpose: int) -> Stream:
        """A stream for one mechanism; with a seed, `purpose` keeps mechanisms apart."""
        if self.seed is None:
            return Stream(secrets.token_bytes(KEY_BYTES))
        return Stream(hashlib.sha256(f"secure-codream experiment|{self.seed}|{purpose}".encode()).digest())
