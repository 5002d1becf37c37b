"""One vector on a device: its parts are given, in order; then it is masked, once, and what leaves is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton.language as tl

from codream_clients.masking import kernels
from codream_protocols import packing, ring, tag
from codream_protocols.accelerator import Masked, NotErased
from codream_protocols.course import Array
from codream_protocols.errors import LocalProtocolError
from codream_protocols.spans import part_of_sum
from codream_protocols.tag import TagKey

_LIMBS = 8
_A_BLOCK = 32  # numbers of 16 bits
_DITHER_LANES = 128
_MOST_PLANES = 3
_MOST_WARPS = 16
_ALIGNED = 16  # bytes


class Vector:
    """See the module; `Ready` of `codream_protocols.accelerator`.

    Args:
        device: where.
        count: elements.
        bits: m.
        rows: rows of the tag's matrix that a program takes.
    """

    def __init__(self, device: torch.device, count: int, bits: int, rows: int) -> None:
        self._device, self._count, self._bits, self._rows = device, count, bits, rows
        self._planes = packing.plane_words(count, bits)
        self._begins = [0]  # of each plane, and their end, in int32
        for _, words in self._planes:
            self._begins.append(self._begins[-1] - (-words // 2))
        self._packed = torch.zeros(self._begins[-1], dtype=torch.int32, device=device)
        self._products = torch.zeros(-(-count // tag.COLUMNS), _LIMBS, dtype=torch.int64, device=device)
        self._replaced = torch.zeros(1, dtype=torch.int32, device=device)
        self._nothing = torch.zeros(1, dtype=torch.int16, device=device)
        self._end, self._replaced_before, self._parts = 0, 0, list[dict[str, Any]]()
        self._secrets = [self._products]  # what tells of the vector, or of its masks

    def give_words(self, words: Array, replaced: int = 0) -> None:
        """Ring elements, of which `replaced` stand for numbers that were not finite."""
        values = self._secret(words.astype(np.int32))
        self._replaced_before += replaced
        self._give(values, self._nothing, self._nothing, ring.Steps(np.float32, 0, 0, 0, 0), None)

    def give_numbers(self, tensor: torch.Tensor, clip: float, top: int, key: bytes) -> None:
        """Numbers, and the key of their dither, as in `ring.encode`."""
        values = tensor.detach().to(self._device).reshape(-1)
        if values.data_ptr() != tensor.data_ptr():
            self._secrets.append(values)
        if values.data_ptr() % _ALIGNED:  # else another program would be compiled than the one that was proven
            values = values.clone()
            self._secrets.append(values)
        steps = ring.Steps.of(np.dtype("<f4" if values.dtype == torch.float32 else "<f8"), clip, top)
        scales = torch.tensor([steps.factor, steps.bound, clip], dtype=torch.float64, device=self._device)
        blocks = -(-len(values) // _A_BLOCK)
        odds = torch.empty(16 * blocks, dtype=torch.int32, device=self._device)
        self._secrets.append(odds)
        lanes = self._rows * _DITHER_LANES
        with _on(self._device):
            kernels.dither[(-(-blocks // lanes),)](odds, self._words_of([key]), blocks, LANES=lanes)
        self._give(
            values, scales, odds.view(torch.int16), steps, tl.float32 if steps.real is np.float32 else tl.float64
        )

    def _give(
        self, values: torch.Tensor, scales: torch.Tensor, odds: torch.Tensor, steps: ring.Steps, real: Any
    ) -> None:
        self._parts.append(
            {
                "values": values,
                "scales": scales,
                "odds": odds,
                "start": self._end,
                "stop": self._end + len(values),
                "middle": steps.middle,
                "fine": steps.fine,
                "REAL": real,
            }
        )
        self._end += len(values)

    @part_of_sum("masking")
    def masked(self, keys: Sequence[tuple[bytes, bool]], tag_key: TagKey) -> Masked:
        """See `Ready`."""
        try:
            if self._end != self._count or self._packed.any():
                raise LocalProtocolError(f"{self._end} elements to mask", f"{self._count}, and once")
            rows, limbs = tag_key.limbs
            columns = np.ascontiguousarray(limbs.T, dtype=np.int32)
            limbs[:] = 0
            weights = self._secret(rows)
            signs = [-1 if negative else 1 for _, negative in keys]
            given: dict[str, Any] = {
                "keys": self._words_of([key for key, _ in keys]),
                "signs": torch.tensor(signs, dtype=torch.int32).to(self._device),
                "columns": self._secret(columns),
                "pairs": len(keys),
            }
            with _on(self._device):
                for part in self._parts:
                    self._launch({**part, **given})
            sums = self._sums(weights)
            return Masked(self._frame(), tag.joined(*sums), self._replaced_before + int(self._replaced))
        finally:
            self.forget()

    def forget(self) -> None:
        """Overwrite all that tells of the vector, or of its masks.

        Raises:
            NotErased: the device does nothing any more.
        """
        failed: RuntimeError | None = None
        for secret in self._secrets:
            try:
                secret.zero_()
            except RuntimeError as error:  # others may lie elsewhere
                failed = error
        try:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            failed = error
        if failed is not None:
            raise NotErased(f"{self._device} failed, and cannot erase what it was given ({failed})") from failed

    def _launch(self, part: dict[str, Any]) -> None:
        first, last = part["start"] // tag.COLUMNS, -(-part["stop"] // tag.COLUMNS)
        lanes = self._rows * tag.COLUMNS // (32 if self._bits <= 16 else 16)
        second, third = [*self._begins[1:-1], 0, 0][: _MOST_PLANES - 1]
        kernels.mask[(-(-(last - first) // self._rows),)](
            planes=self._packed,
            halves=self._packed.view(torch.int16),
            products=self._products,
            replaced=self._replaced,
            count=self._count,
            second=second,
            third=third,
            BITS=self._bits,
            WIDTHS=tuple(width for width, _ in self._planes),
            ROWS=self._rows,
            num_warps=min(lanes // 32, _MOST_WARPS),
            **part,
        )

    def _sums(self, weights: torch.Tensor) -> tuple[Array, Array]:
        """As `TagKey.of` ends: a in limbs times X b in limbs, the lower 32 bits of these and the upper ones."""
        sums = list[Array]()
        for half in (self._products & ((1 << tag.HALF_BITS) - 1), self._products >> tag.HALF_BITS):
            self._secrets.append(half)
            weighed = weights[:, :, None] * half[:, None, :]
            self._secrets.append(weighed)
            self._secrets.append(weighed.sum(dim=0))
            sums.append(self._secrets[-1].cpu().numpy())
        return sums[0], sums[1]

    def _frame(self) -> bytes:
        packed = self._packed.cpu().numpy().view("<u2")
        return b"".join(
            packed[2 * begin : 2 * begin + words].data
            for begin, (_, words) in zip(self._begins, self._planes, strict=False)
        )

    def _words_of(self, keys: Sequence[bytes]) -> torch.Tensor:
        """Keys as words, int32, (keys, 8)."""
        return self._secret(np.frombuffer(b"".join(keys), dtype="<i4").reshape(-1, 8).copy())

    def _secret(self, numbers: Array) -> torch.Tensor:
        """On the device until the vector is masked, and nowhere else."""
        here = torch.from_numpy(numbers)
        self._secrets.append(here)  # it stays where the device has no room
        there = here.to(self._device)
        if there is not here:
            here.zero_()
            self._secrets[-1] = there
        return there


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
