"""A vector whose numbers lie on a GPU is rounded, masked and packed there: only packed bytes and its tag leave it.

    found = why_not(device, plan.aggregation.suite)              # None, or why masks are made on the processor
    ClientProtocol(..., accelerator=DeviceMasks(device))         # hand its `provide` numbers as `OnDevice(tensor)`

For the suite chacha20 alone, whose stream suits a GPU, and for vectors without noise of their own. The stream in
`kernels` is this project's own code, against its rule; so before vectors of a kind are masked here, one is, on this
card and with this compiler, and must come out as `codream_protocols` has it. The argument, and what a GPU keeps of
keys: docs/decisions/0017-masks-on-a-gpu.md.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codream_protocols import packing
from codream_protocols.accelerator import Masked, Ready
from codream_protocols.charter import Plan
from codream_protocols.course import Array
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.encoding import StreamRounding, encode_block, flat_block
from codream_protocols.masks import add_masks, word_type
from codream_protocols.spans import part_of_sum
from codream_protocols.specs import Block
from codream_protocols.tag import TagKey

if TYPE_CHECKING:
    from codream_clients.masking.vector import Vector

SUITE = "chacha20"
_MOST_CLIP = 2.0**60  # beyond it `ring` scales single precision in double: a kind that is not proven
_PROVING, _PROVING_FROM = (1 << 17) + 2748, 37  # elements of the vector that proves a kind; where its numbers begin


@dataclass(frozen=True, eq=False)
class OnDevice:
    """Numbers of a block that lie on a device; who asks for an array has them fetched.

    Attributes:
        tensor: float32 or float64, of any shape.
    """

    tensor: torch.Tensor

    @property
    def dtype(self) -> np.dtype[Any]:
        """As numpy has it."""
        return np.dtype("<f4" if self.tensor.dtype == torch.float32 else "<f8")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.tensor.detach().cpu().numpy(), dtype=dtype)


def why_not(device: torch.device, suite: str) -> str | None:
    """Why a charter's vectors are masked on the processor, wherever numbers lie; None if a GPU masks them."""
    if device.type != "cuda":
        return f"masks on the processor: numbers lie on {device.type}, and only on cuda they could be made there"
    if suite != SUITE:
        return f"masks on the processor: the charter's suite is {suite}; a GPU makes those of {SUITE}"
    if importlib.util.find_spec("triton") is None:
        return "masks on the processor: triton is missing; it comes with torch's wheels for Linux"
    return None


class DeviceMasks:
    """Masks the vectors of which numbers lie on a device: an `Accelerator` of `codream_protocols`.

    Args:
        device: where; one that is no GPU needs Triton's interpreter.
        tell: called with why a kind of vector is masked on the processor all the same, once for each kind.
        rows: rows of the tag's matrix, 2,048 elements each, that a program takes: a power of two.
    """

    def __init__(
        self, device: torch.device, tell: Callable[[str], object] = lambda text: None, *, rows: int = 1
    ) -> None:
        self._device, self._tell, self._rows = device, tell, rows
        self._proven: dict[tuple[int, int, np.dtype[Any]], bool] = {}

    def ready(self, plan: Plan, step: int, values: Mapping[str, Any], random_bytes: RandomBytes) -> Ready | None:
        """See `Accelerator`: None of another suite, with noise, without a number on the device, or of no proven kind.

        What does not fit the step is refused by the machine, which gets None for it.
        """
        spec, bits, top = plan.spec(step), plan.modulus_bits(step), plan.top(step)
        if plan.aggregation.suite != SUITE or spec.noise is not None:
            return None
        try:
            here = {name: value for name, value in values.items() if isinstance(value, OnDevice)}
            if not here or set(values) != {block.name for block in spec.blocks}:
                return None
            if not all(_fits(block, values[block.name]) for block in spec.blocks):
                return None
            if not all(self.is_proven(bits, top, kind) for kind in {value.dtype for value in here.values()}):
                return None
            return self._given(plan, step, values, random_bytes)
        except (AttributeError, TypeError, ValueError):  # no numbers, which the machine says
            return None
        except Exception as error:  # of torch, the driver, the compiler, or the disk that it writes to
            self._tell(f"masks on the processor, of step {step}: {self._device} failed with {error}")
            return None

    @part_of_sum("encoding")
    def _given(self, plan: Plan, step: int, values: Mapping[str, Any], random_bytes: RandomBytes) -> Vector:
        spec, bits, top = plan.spec(step), plan.modulus_bits(step), plan.top(step)
        vector, rounding = self._vector(spec.words, bits), StreamRounding(random_bytes, SUITE)
        try:
            for block in spec.blocks:
                value = values[block.name]
                if isinstance(value, OnDevice):
                    vector.give_numbers(value.tensor, block.clip, top, rounding.key())
                else:
                    words = np.empty(block.words, dtype=word_type(bits))
                    replaced = encode_block(block, flat_block(block, value, spec.task), words, top, rounding)
                    vector.give_words(words, replaced)
        except Exception:
            vector.forget()
            raise
        return vector

    def is_proven(self, bits: int, top: int, dtype: np.dtype[Any]) -> bool:
        """Whether vectors of a kind come out as on the processor: one is masked both ways, the first time."""
        kind = bits, top, dtype
        if kind not in self._proven:
            try:
                self._proven[kind] = self._proves(*kind)
                found = "another vector came out than on the processor"
            except Exception as error:  # of the compiler or the driver: the processor does it then
                self._proven[kind], found = False, f"{type(error).__name__}: {error}"
            if not self._proven[kind]:
                self._tell(f"masks on the processor for {dtype.name} at {bits} bits: on {self._device}, {found}")
        return self._proven[kind]

    def _proves(self, bits: int, top: int, dtype: np.dtype[Any]) -> bool:
        """Of fixed keys, in two pieces of a stream or more and three of a dither, with values that no clip bounds."""
        clip, keys = 0.75, [(bytes(range(32)), False), (bytes(range(32, 64)), True)]
        rng = np.random.default_rng(0)
        values = rng.normal(0.0, 0.5, _PROVING - _PROVING_FROM).astype(dtype)
        values[:5] = np.nan, np.inf, -np.inf, np.finfo(dtype).max, 0.0
        expected = np.empty(_PROVING, dtype=word_type(bits))
        expected[:_PROVING_FROM] = rng.integers(0, top + 1, _PROVING_FROM)
        vector, tag_key = self._vector(_PROVING, bits), TagKey(bytes(32), _PROVING)
        vector.give_words(expected[:_PROVING_FROM].copy())
        vector.give_numbers(torch.from_numpy(values).to(self._device), clip, top, keys[0][0])
        found = vector.masked(keys, tag_key)
        block, rounding = Block("numbers", len(values), clip), StreamRounding(lambda count: keys[0][0], SUITE)
        replaced = encode_block(block, values, expected[_PROVING_FROM:], top, rounding)
        product = tag_key.of(expected)
        add_masks(expected, keys, suite=SUITE)
        expected &= expected.dtype.type((1 << bits) - 1)
        return found == Masked(packing.pack(expected, bits), product, replaced)

    def _vector(self, count: int, bits: int) -> Vector:
        from codream_clients.masking.vector import Vector  # where there is no GPU, triton may be missing

        return Vector(self._device, count, bits, self._rows)


def _fits(block: Block, value: Any) -> bool:
    if not isinstance(value, OnDevice):
        return np.size(value) == block.length
    real = block.kind == "real" and block.clip <= _MOST_CLIP
    return real and value.tensor.dtype in (torch.float32, torch.float64) and value.tensor.numel() == block.length
