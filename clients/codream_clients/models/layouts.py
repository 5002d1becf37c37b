"""A model's parameters and running statistics as the one vector that parameter courses average.

`codream_protocols.courses.layouts` says what a layout is; here models are read into it and written from it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_protocols.course import Array
from codream_protocols.courses.layouts import Layout, length_of

FloatArray = NDArray[np.float32]


class LayoutError(ValueError):
    """A model or a vector is not of this layout."""


def layout_of(model: nn.Module) -> Layout:
    """Parameters and floating-point buffers, in the order of the `state_dict`."""
    state = model.state_dict()
    return tuple((name, tuple(tensor.shape)) for name, tensor in state.items() if tensor.is_floating_point())


def trained_layout(model: nn.Module) -> Layout:
    """The parameters that are trained, in the order of `parameters`; what is fixed is left out."""
    named = model.named_parameters()
    return tuple((name, tuple(weight.shape)) for name, weight in named if weight.requires_grad)


def check_model_layout(model: nn.Module, layout: Layout) -> None:
    """Raise `LayoutError`, which names the first difference, unless the model is of this layout."""
    check_same_layout(layout_of(model), layout)


def check_same_layout(found: Layout, layout: Layout) -> None:
    """Raise `LayoutError`, which names the first difference, unless a model's layout is this one."""
    if found != layout:
        pairs = zip((*found, None), (*layout, None), strict=False)
        ours, theirs = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
        raise LayoutError(f"a model with {ours or 'nothing more'} where the course has {theirs or 'nothing more'}")


def read_vector(model: nn.Module, layout: Layout) -> FloatArray:
    """The named tensors of a model's state as one vector (length,)."""
    state = model.state_dict()
    return np.concatenate([state[name].detach().to("cpu", torch.float32).reshape(-1).numpy() for name, _ in layout])


def split_vector(vector: Array, layout: Layout, device: torch.device) -> dict[str, torch.Tensor]:
    """Float32 copies of a vector's parts (length,), in their shapes.

    Raises:
        LayoutError: a vector of another length.
    """
    if vector.shape != (length_of(layout),):
        raise LayoutError(f"a vector of shape {vector.shape}; allowed: ({length_of(layout)},)")
    parts, start = {}, 0
    for name, shape in layout:
        size = int(np.prod(shape))
        part = np.array(vector[start : start + size], dtype=np.float32)
        parts[name] = torch.from_numpy(part).reshape(shape).to(device)
        start += size
    return parts


def write_vector(model: nn.Module, layout: Layout, vector: Array) -> None:
    """Load a vector (length,) into a model; a running variance below 0 becomes 0."""
    state = model.state_dict()
    for name, tensor in split_vector(vector, layout, torch.device("cpu")).items():
        state[name].copy_(tensor.clamp(min=0) if name.endswith("running_var") else tensor)
