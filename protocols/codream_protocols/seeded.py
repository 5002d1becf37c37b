"""Repeatable bytes for simulations: a stream in place of the operating system's generator.

Whoever knows the seed knows every key, so the deployed server and client never import this.
"""

from __future__ import annotations

from codream_protocols.keyschedule import digest
from codream_protocols.masks import stream_words

_BLOCK_BYTES = 1 << 16


class SeededBytes:
    """Called with n, gives the next n bytes of the stream of (seed, name).

    Args:
        seed: any integer below 2^63, not negative.
        name: tells the streams of one seed apart.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._key = digest("seeded", seed.to_bytes(8, "big"), name.encode())
        self._block, self._left = 0, b""

    def __call__(self, count: int) -> bytes:
        """The next `count` bytes."""
        parts, missing = [self._left[:count]], count - len(self._left)
        self._left = self._left[count:]
        while missing > 0:
            key = digest("seeded block", self._key, self._block.to_bytes(8, "big"))
            block = stream_words(_BLOCK_BYTES, "|u1", key, suite="aes-256-ctr").tobytes()
            self._block += 1
            parts.append(block[:missing])
            self._left = block[missing:]
            missing -= len(block)
        return b"".join(parts)
