"""A model in a form that other programs run: `torch.export` (.pt2), or ONNX (.onnx), which needs the extra `onnx`.

The graph takes pixels as they are stored, (N, C, H, W) floats from 0 to 255, and standardises them itself, so that
nobody can standardise them otherwise. It gives logits and probabilities, both (N, K), for any N. Where it is not known
how pixels are standardised, it takes images that are so already. What the model's file says travels as metadata
(`secure_codream` in ONNX, `secure_codream.json` in a .pt2).
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from codream_clients.data.pixels import Scale
from secure_codream.reports.files import write_whole
from secure_codream.reports.words import first_line
from secure_codream.use.model import OpenedModel, UseError
from secure_codream.use.predict import check_out

KEY = "secure_codream"
SUFFIXES = (".pt2", ".onnx")


class FromPixels(nn.Module):
    """A network, and before it what makes its images of pixels.

    Args:
        network: standardised images (N, C, H, W) -> logits (N, K).
        scale: what standardises; None where images come standardised.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, scale: Scale | None) -> None:
        super().__init__()
        self.network = network
        self.standardises = scale is not None
        if scale is not None:
            self.register_buffer("mean", torch.tensor(scale.mean).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(scale.std).view(1, -1, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (N, C, H, W), floats from 0 to 255 -> logits and probabilities, (N, K)."""
        images = (pixels / 255 - self.mean) / self.std if self.standardises else pixels
        logits = self.network(images)
        return logits, logits.softmax(dim=1)


def export(model: OpenedModel, out: Path, *, force: bool = False) -> None:
    """Write the model to `out`, in the form that its ending says, whole or not at all.

    Args:
        model: the model; it is moved to the CPU.
        out: a file ending in .pt2 or .onnx.
        force: whether a file that is there is replaced.

    Raises:
        UseError: another ending, a file that is there, a package that is missing, or a model that cannot be exported.
    """
    if out.suffix not in SUFFIXES:
        raise UseError(f"found --out {out}; a name ending in {' or '.join(SUFFIXES)} is needed")
    check_out(out, [model.path], force=force)
    whole = FromPixels(model.network.cpu(), model.scale).eval()
    text = msgspec.json.encode(model.description).decode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own ways, which nobody here can mend
            content = _as_onnx(whole, model, text) if out.suffix == ".onnx" else _as_program(whole, model, text)
    except UseError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network that cannot be traced leads torch to raise
        raise UseError(f"{model.path}: this model cannot be exported ({first_line(error)})") from error
    write_whole(out, content)


def _traced(whole: FromPixels, model: OpenedModel) -> torch.export.ExportedProgram:
    example = torch.zeros(2, *model.description.shape)
    return torch.export.export(whole, (example,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))


def _as_program(whole: FromPixels, model: OpenedModel, text: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_traced(whole, model), buffer, extra_files={f"{KEY}.json": text})
    return buffer.getvalue()


def _as_onnx(whole: FromPixels, model: OpenedModel, text: str) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UseError(f"{error}; ONNX needs more packages: pip install 'secure-codream[onnx]'") from error
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program: Any = torch.onnx.export(
        _traced(whole, model),
        input_names=["pixels"],
        output_names=["logits", "probabilities"],
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props[KEY] = text
    program.model.metadata_props["classes"] = msgspec.json.encode(model.description.names).decode()
    content: bytes = program.model_proto.SerializeToString()
    return content
