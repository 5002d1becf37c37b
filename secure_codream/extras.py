"""What the base install, an aggregator's, does not bring: whose module is missing, and which extra brings it."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "torch": "client",
    "torchvision": "client",
    "opacus": "client",
    "sklearn": "client",
    "scipy": "client",
    "safetensors": "client",
    "PIL": "client",  # torchvision's
    "matplotlib": "experiments",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "tensorboard": "tensorboard",
    "ray": "ray",
    "flwr": "flower",
}
"""Module -> the extra of `pyproject.toml` that brings it."""


class ExtraMissing(ImportError):
    """What was asked for needs a package that is not installed; the text says how to install it."""


def told_of(error: ImportError) -> ExtraMissing | None:
    """The same in one line that names the extra; None where none brings what is missing."""
    if isinstance(error, ExtraMissing):
        return error
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return None
    return ExtraMissing(
        f'found no {module}, which this needs; install it with: pip install "secure-codream[{EXTRAS[module]}]"',
        name=module,
    )


def require(module: str) -> None:
    """See that a module of an extra is there, before work is begun that would end without it; it is not loaded.

    Raises:
        ExtraMissing: it is not.
    """
    if find_spec(module) is None:
        missing = ModuleNotFoundError(f"No module named {module!r}", name=module)
        raise told_of(missing) or missing
