"""A client's model on disk: a safetensors file of its weights, which says in its header what model they are.

The format (https://github.com/huggingface/safetensors) is eight bytes with the header's length, the header, JSON with
each tensor's name, type, shape and place, and then the tensors' bytes, all of them and no others. Nothing in it is
code, and reading it runs none. Our `Description` is one text in the header's own table.

A file is read in three steps, each before the next costs anything: its size and its header's; the description; the
tensors, whose bytes the library checks against the header. Weights go into a model only where all their names, types
and shapes are the model's: a model is taken whole, or is what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import nn

from secure_codream.deployment.description import Description
from secure_codream.reports.words import first_line

MAX_BYTES, MAX_HEADER_BYTES, MAX_TENSORS = 8 << 30, 8 << 20, 20_000
_KEY = "secure_codream"


class CheckpointError(ValueError):
    """No model that can be used, or another one than is needed."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model's file holds: `weights` are a `state_dict`, on the CPU, all finite."""

    path: Path
    description: Description
    weights: dict[str, torch.Tensor]

    def check(self, model: nn.Module) -> None:
        """See that the weights are a model's own: same names, types and shapes.

        Raises:
            CheckpointError: they are another model's; the first few differences are named.
        """
        wanted, found = _forms(_state_of(model)), _forms(self.weights)
        if wanted == found:
            return
        names = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
        differences = [f"{name} ({_form(found.get(name))}, needed is {_form(wanted.get(name))})" for name in names[:3]]
        raise CheckpointError(
            f"{self.path}: weights of another model: {len(names)} tensors differ, {'; '.join(differences)}"
        )

    def put_into(self, model: nn.Module) -> None:
        """Give the model these weights, where it lies; raises as `check`, and the model is as it was."""
        self.check(model)
        model.load_state_dict(self.weights)


def checkpoint_bytes(model: nn.Module | Mapping[str, torch.Tensor], description: Description) -> bytes:
    """What the file of a model holds.

    Args:
        model: whose `state_dict`, on whatever device, is kept; or that itself.
        description: what it is.

    Raises:
        CheckpointError: a state that is not of tensors alone.
    """
    text = msgspec.json.encode(description).decode()
    tensors = {name: _on_its_own(tensor) for name, tensor in _state_of(model).items()}
    content: bytes = safetensors.torch.save(tensors, {_KEY: text})
    return content


def read_checkpoint(path: Path) -> Checkpoint:
    """What the file holds; nothing of it is run.

    Raises:
        CheckpointError: there is no such file, it is damaged, too large or none of ours, or its weights are not finite.
    """
    try:
        content = _bytes_of(path)
        description = _description_in(content)
        weights: dict[str, torch.Tensor] = safetensors.torch.load(content)
    except OSError as error:
        raise CheckpointError(f"{path}: found no file that can be read ({error.strerror or error})") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # whatever tensors that are none lead the library to raise
        raise CheckpointError(
            f"{path}: found no sound model ({first_line(error)}); one that is whole is needed"
        ) from error
    for name, tensor in weights.items():
        if not _finite(tensor):
            raise CheckpointError(f"{path}: weights that are not finite, {name}; they cannot be used")
    return Checkpoint(path, description, weights)


def go_on(path: Path, model: nn.Module, description: Description) -> Description:
    """Put the weights of `path` into a client's model, which goes on with them.

    Weights that were trained under another charter are refused: a private federation must not begin with what was
    trained without privacy. So are those of another model, or of the same one whose source is another, and those that
    know other classes, or images of another shape or on another scale, also where one of both does not say.

    Args:
        path: the client's own file.
        model: the client's model.
        description: what its file is to say.

    Returns:
        What the file says of them.

    Raises:
        CheckpointError: there is none, or it is no file of this client's model and federation; the model is as it was.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no weights to go on with; start without it")
    try:
        found = read_checkpoint(path)
        now, then = description, found.description
        if then.charter != now.charter:
            raise CheckpointError(
                f"{path}: trained under charter {then.charter[:16]}…, this federation's is {now.charter[:16]}…"
            )
        for what, one, other in (
            ("the model", then.model, now.model),
            ("the SHA-256 of its source", then.code, now.code),
            ("the shape of images", then.shape, now.shape),
            ("the number of classes", then.classes, now.classes),
            ("the names of classes", then.class_names, now.class_names),
            ("the scale of images", then.standardisation, now.standardisation),
        ):
            if one != other:
                raise CheckpointError(f"{path}: found {what} {_said(one)} in it; this client has {_said(other)}")
        found.put_into(model)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the model of this client and federation is needed; move it away to train anew"
        ) from error
    return then


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError("found no such file; a model's file is needed")
    with path.open("rb") as file:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"found {size} bytes; at most {MAX_BYTES} are allowed")
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"found no model: its header would be of {length} bytes, of {size} in the file; a file that "
                f"`client` wrote is needed, with a header of at most {MAX_HEADER_BYTES}"
            )
        file.seek(0)
        return file.read(MAX_BYTES)


def _description_in(content: bytes) -> Description:
    length = int.from_bytes(content[:8], "little")
    try:
        whole = msgspec.json.decode(content[8 : 8 + length], type=dict[str, msgspec.Raw])
        if len(whole) > MAX_TENSORS:
            raise CheckpointError(f"found {len(whole)} tensors; at most {MAX_TENSORS} are allowed")
        table = msgspec.json.decode(whole.get("__metadata__", b"{}"), type=dict[str, str])
        text = table.get(_KEY)
        if text is None:
            raise CheckpointError("found weights, but not what model they are; a file that `client` wrote is needed")
        return msgspec.json.decode(text.encode(), type=Description)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CheckpointError(f"found no sound description ({first_line(error)}); a whole one is needed") from error


def _state_of(model: nn.Module | Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"the model's state holds {', '.join(others[:3])}, no tensors; tensors alone can be kept")
    return state


def _on_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU in memory of its own: what several of a model share is written for each of them."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def _forms(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _form(form: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "none" if form is None else f"{str(form[0]).removeprefix('torch.')} {form[1]}"


def _said(value: object) -> str:
    return "none" if value is None else f"{value!r:.200}"
