"""What this machine can do at best: the speed of the mask generator, by any implementation of its bits, and of memory.

Each is the best of several tries, since what else runs on the machine can only slow them down.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_PIECE_BYTES = 1 << 18
_PIECES = 64
_COPIED_BYTES = 1 << 26
_TRIES = 7
_FIRST_BLOCK = (2).to_bytes(16, "big")  # of piece 0


@dataclass(frozen=True)
class Limits:
    """Of one thread.

    Attributes:
        generator: the name of the fastest implementation.
        generator_speed: its bytes a second.
        memory_speed: bytes a second, those read and those written together.
    """

    generator: str
    generator_speed: float
    memory_speed: float

    def streams(self, count: int, size: int) -> float:
        """Milliseconds for `count` mask streams of `size` bytes."""
        return 1e3 * count * size / self.generator_speed

    def moving(self, size: int) -> float:
        """Milliseconds to read or write `size` bytes."""
        return 1e3 * size / self.memory_speed


def measure_limits() -> Limits:
    """Measure this machine; takes about half a second."""
    zeros, out = bytes(_PIECE_BYTES), bytearray(_PIECE_BYTES + 16)
    key = bytes(range(32))
    gcm = AESGCM(key)
    ctr = Cipher(AES(key), CTR(_FIRST_BLOCK)).encryptor()

    def by_gcm() -> None:
        for piece in range(_PIECES):
            gcm.encrypt_into(piece.to_bytes(12, "big"), zeros, None, out)

    def by_ctr() -> None:
        for piece in range(_PIECES):
            ctr.reset_nonce(piece.to_bytes(12, "big") + _FIRST_BLOCK[12:])
            ctr.update_into(zeros, out)

    makers = {"AES-256-GCM's key stream": by_gcm, "AES-256-CTR": by_ctr}
    seconds = {name: _least(work) for name, work in makers.items()}
    fastest = min(seconds, key=seconds.__getitem__)
    source = np.ones(_COPIED_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    copying = _least(lambda: np.copyto(target, source))
    return Limits(fastest, _PIECES * _PIECE_BYTES / seconds[fastest], 2 * _COPIED_BYTES / copying)


def processor_name() -> str:
    """What the operating system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _least(work: Callable[[], object]) -> float:
    """The least processor time of several tries, in seconds."""
    work()
    taken = []
    for _ in range(_TRIES):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)
