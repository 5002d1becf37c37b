"""A model's file opened: the network that it names, with its weights, and the scale that its images must be on.

A model of the zoo is built by its name. It is first built without memory, and compared: a file cannot make this
program take more than the file's own weights need. `module:function` is code of somebody's own. It runs only where the
person who opens the file names it, and only as the very source whose digest the file has; where the file has none (a
model that a script handed over, a module without a source file) the person alone vouches for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import RawImages, Scale, on_scale
from codream_clients.devices import pick_device
from codream_clients.models.zoo import build, call_builder
from codream_clients.own_parts import guarded, is_reference, load_own_part
from secure_codream.configuration.own_code import load_named, source_digest
from secure_codream.deployment.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from secure_codream.deployment.description import Description
from secure_codream.deployment.files import MODEL

BATCH_VALUES, MOST_IN_BATCH = 1 << 21, 256
"""A batch is of so many numbers, and so many images, at most: memory is bounded whatever the images are."""


class UseError(ValueError):
    """A model that cannot be used as asked."""


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model ready for use.

    Attributes:
        path: its file.
        description: what the file says; what images its reader must make is in `shape` and `resized`.
        network: (N, C, H, W) float32 on `scale` -> logits (N, K), in eval mode.
        scale: what turns bytes into what the network takes; None where nobody has said.
    """

    path: Path
    description: Description
    network: nn.Module
    scale: Scale | None

    @property
    def batch(self) -> int:
        """How many images are taken at a time."""
        values = int(np.prod(self.description.shape))
        return max(1, min(MOST_IN_BATCH, BATCH_VALUES // values))

    def names_with(self, told: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The classes' names: those of the file, else those `told`.

        Raises:
            UseError: some are told, and the file has some, or has another number of classes.
        """
        known, classes = self.description.class_names, self.description.classes
        if told is not None and known is not None:
            raise UseError(f"found class names; {self.path} has its own: {_listed(known)}")
        if told is not None and (len(told) != classes or len(set(told)) != classes):
            raise UseError(f"found the class names {_listed(told)}; {classes} different ones are needed")
        return known if told is None else told

    def standardised(self, images: RawImages | LabelledImages, names: tuple[str, ...] | None = None) -> LabelledImages:
        """Labelled images as the network takes them; `names` are the classes' where the file has none.

        Raises:
            UseError: images of another form, in other classes, with names that nobody has said the model's numbers
                mean, or on a scale that nobody said where the model's is known, or the other way round.
        """
        expected = self.description
        if (images.shape, images.classes) != (expected.shape, expected.classes):
            raise UseError(
                f"found images of shape {images.shape} in {images.classes} classes; {self.path} takes "
                f"{expected.shape} in {expected.classes}"
            )
        known = expected.class_names or names
        if known is None and images.class_names not in (None, expected.names):
            raise UseError(
                f"found the classes {_listed(images.class_names)}; {self.path} has numbers alone, and nobody has said "
                "what they mean: --class-names with the names in the order of its numbers is needed"
            )
        if None not in (images.class_names, known) and images.class_names != known:
            raise UseError(
                f"found the classes {_listed(images.class_names)}; {self.path} knows {_listed(known)}, in this order"
            )
        if isinstance(images, RawImages):
            return images.standardised(self.scale_of_pixels)
        if images.scale is not None and self.scale is not None:
            return on_scale(images, self.scale)
        if images.scale != self.scale:
            raise UseError(
                f"found images that were standardised by {_words(images.scale)}; {self.path} takes images that were "
                f"standardised by {_words(self.scale)}: give pixels as bytes, which are put on that scale"
            )
        return images

    def probabilities_of_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """For pixels (N, H, W, C), the probability of each class, (N, K); a row without finite logits is of NaN.

        Raises:
            UseError: the file does not say how pixels are standardised, and nobody else has.
        """
        unlabelled = RawImages(pixels, np.zeros(len(pixels), np.int64), self.description.classes)
        return self.probabilities(unlabelled.standardised(self.scale_of_pixels).images)

    def probabilities(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """For standardised images (N, C, H, W), the probability of each class, (N, K)."""
        return np.concatenate(list(self._in_batches(images)))

    def _in_batches(self, images: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
        yield np.empty((0, self.description.classes))
        device = next(self.network.parameters()).device
        for first in range(0, len(images), self.batch):
            given = torch.from_numpy(images[first : first + self.batch]).to(device)
            yield _answer(self.network, given, self.path).cpu().double().softmax(dim=1).numpy()

    @property
    def scale_of_pixels(self) -> Scale:
        """What standardises pixels; raises `UseError` where nobody has said."""
        if self.scale is None:
            raise UseError(
                f"{self.path}: trained on images that a function or a script had standardised, so that how pixels are "
                "is not known; --mean and --std, of pixels divided by 255, are needed"
            )
        return self.scale


def open_model(
    path: str | Path, *, builder: str | None = None, scale: Scale | None = None, device: str = "auto"
) -> OpenedModel:
    """The model of a file, or of a client's folder.

    Args:
        path: a model's file, or a folder with `model.safetensors` in it.
        builder: module:function, (channels, size, classes) -> nn.Module, for a model that is not of the zoo. THIS RUNS
            THAT CODE, if its source is the one that the file has the digest of.
        scale: how pixels are standardised, for a model whose file does not know.
        device: as `pick_device` takes it.

    Raises:
        CheckpointError: the file is none that can be used, or its weights are not of the model that it names.
        UseError: code of somebody's own is needed, or named without need; a scale that the file contradicts.
        ConfigError, OwnPartError: that code is not found, is not the recorded one, or fails.
    """
    path = Path(path)
    kept = read_checkpoint(path / MODEL if path.is_dir() else path)
    description = kept.description
    known = None if description.standardisation is None else description.standardisation.scale()
    if None not in (known, scale) and known != scale:
        raise UseError(f"found {_words(scale)}; {kept.path} was trained with {_words(known)}, which is taken by itself")
    network = _built(kept, builder)
    kept.put_into(network)
    network = network.to(pick_device(device)).eval()
    _try(kept, network)
    return OpenedModel(kept.path, description, network, known or _fitting(scale, description))


def _built(kept: Checkpoint, builder: str | None) -> nn.Module:
    description = kept.description
    channels, *sides = description.shape
    form: dict[str, Any] = {"channels": channels, "size": tuple(sides), "classes": description.classes, "seed": 0}
    if description.model is not None and description.own_code is None:
        if builder is not None:
            raise UseError(f"found --model {builder}; {kept.path} holds {description.model}, which needs no code")
        try:
            with torch.device("meta"):
                kept.check(build(description.model, **form))
            return build(description.model, **form)
        except (ValueError, RuntimeError) as error:
            raise error if isinstance(error, CheckpointError) else CheckpointError(f"{kept.path}: {error}") from error
    if builder is None or not is_reference(builder):
        needed = description.own_code or "module:function"
        whose = "code of somebody's own builds it" if description.own_code else "a script handed it over"
        raise UseError(
            f"{kept.path}: found a model that is not of the zoo ({whose}); --model {needed} is needed, which RUNS THAT "
            "CODE"
        )
    return _by_own_code(kept, builder)


def _by_own_code(kept: Checkpoint, builder: str) -> nn.Module:
    code = kept.description.code
    if code is None:
        function = load_own_part(builder)
    elif (found := source_digest(builder)) != code:
        raise UseError(
            f"{builder}: found source with digest {found[:16]}…; {kept.path} was trained with {code[:16]}…, and no "
            "other is run: put the file back as it was then, or name where it is now"
        )
    else:
        function = load_named(builder, {builder: code})
    network = call_builder(builder, function, kept.description.shape, kept.description.classes)
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise UseError(f"{builder} returned {type(network).__name__}; an nn.Module with weights is needed")
    return network


def _try(kept: Checkpoint, network: nn.Module) -> None:
    """One image of zeros: a model whose weights fit, and which gives something else, is found here."""
    shape, classes = kept.description.shape, kept.description.classes
    given = torch.zeros(1, *shape, device=next(network.parameters()).device)
    logits: object = _answer(network, given, kept.path)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, classes) or not logits.is_floating_point():
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UseError(
            f"{kept.path}: for an image of shape {shape} the model gave {came}; logits (1, {classes}) are needed"
        )


def _answer(network: nn.Module, images: torch.Tensor, path: Path) -> torch.Tensor:
    """Its logits; raises `OwnPartError` if it raises anything."""
    with torch.inference_mode(), guarded(f"{path}: the model on images of shape {tuple(images.shape)}"):
        return network(images)  # type: ignore[no-any-return]


def _fitting(scale: Scale | None, description: Description) -> Scale | None:
    if scale is not None and len(scale.mean) not in (1, description.shape[0]):
        raise UseError(f"found {len(scale.mean)} means and deviations; 1 or {description.shape[0]} are needed")
    return scale


def _words(scale: Scale | None) -> str:
    return "a way that nobody recorded" if scale is None else f"mean {scale.mean} and deviation {scale.std}"


def _listed(names: tuple[str, ...] | None) -> str:
    return ", ".join((names or ())[:12])
