"""What a model's file says of itself: what builds the model, what it takes and gives, and what it has learnt.

Everything in it is bounded and typed, and checked when it is read: a file may come from anywhere. In a federation with
`[privacy]` the file holds what is noised or public and nothing else: the weights, names that the charter has, and no
figure that was measured on images.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.pixels import MAX_CHANNELS, MAX_CLASSES, MAX_SIDE, Scale
from codream_clients.models.names import UnknownModelError, split_norm
from codream_clients.own_parts import is_reference
from secure_codream.configuration.own_code import source_digest
from secure_codream.configuration.reading import DIGEST, MOST_LETTERS, NAME, ConfigError

if TYPE_CHECKING:
    from codream_clients.learning.participant import Metrics
    from secure_codream.configuration.client import ClientConfig
    from secure_codream.configuration.federation import FederationConfig

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_LETTERS)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
PerChannel = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=MAX_CHANNELS)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class Standardisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pixel p of channel c becomes (p / 255 - mean_c) / std_c; one value serves all channels."""

    mean: PerChannel
    std: PerChannel

    def scale(self) -> Scale:
        """The same as the readers of images take it; raises `DatasetError` for what is no scale."""
        return Scale(self.mean, self.std)


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client measured last: shares of its test images, and of its own, that the model gets right."""

    test_accuracy: Share | None
    train_accuracy: Share | None


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside the weights.

    Attributes:
        form: which form of description this is.
        written_by: the program's version.
        model: a name of the zoo, or module:function; None for a model that a script handed over.
        code: SHA-256 of the source of module:function, 64 hexadecimal digits; None where there is none to be read.
        federation, client: their names.
        course: what was computed together.
        charter: digest of the charter that the weights were trained under, 64 hexadecimal digits.
        learnt: how many certified epochs the weights have learnt.
        taught: the epoch that left the weights which make and label dreams beside these, `teacher.safetensors`; 0 also
            where there are none.
        shape: of an image: channels, height, width.
        classes: how many there are.
        class_names: theirs, in order, where they are known.
        standardisation: how pixels become what the model takes; None where the images came standardised already.
        resized: whether images were resized to the shape.
        private: whether records were protected by `[privacy]`.
        figures: what was measured; None where it is not told, and with `private`.
    """

    form: Literal[1] = 1
    written_by: Text
    model: Text | None
    code: Annotated[str, msgspec.Meta(pattern=DIGEST)] | None
    federation: Annotated[str, msgspec.Meta(pattern=NAME)]
    client: Annotated[str, msgspec.Meta(pattern=NAME)]
    course: Text
    charter: Annotated[str, msgspec.Meta(pattern=DIGEST)]
    learnt: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    taught: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] = 0
    shape: tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_CHANNELS)], Side, Side]
    classes: Annotated[int, msgspec.Meta(ge=2, le=MAX_CLASSES)]
    class_names: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_CLASSES)] | None
    standardisation: Standardisation | None
    resized: bool
    private: bool
    figures: Figures | None = None

    def __post_init__(self) -> None:
        if self.model is not None and not is_reference(self.model):
            try:
                split_norm(self.model)
            except UnknownModelError as error:
                raise ValueError(str(error)) from error
        if self.code is not None and (self.model is None or not is_reference(self.model)):
            raise ValueError(f"a digest of source for model {self.model!r}; only module:function has any")
        if self.class_names is not None and not len(set(self.class_names)) == len(self.class_names) == self.classes:
            raise ValueError(f"{len(set(self.class_names))} different class names for {self.classes} classes")
        if self.private and self.figures is not None:
            raise ValueError("figures in a private model's file, where nothing without noise belongs")
        if self.standardisation is not None:
            try:
                scale = self.standardisation.scale()
            except DatasetError as error:
                raise ValueError(str(error)) from error
            if len(scale.mean) not in (1, self.shape[0]):
                raise ValueError(f"a scale of {len(scale.mean)} channels for images of {self.shape[0]}")

    @property
    def own_code(self) -> str | None:
        """The module:function that builds the model, if one does."""
        return self.model if self.model is not None and is_reference(self.model) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes as a person reads them: their names, else their numbers."""
        return self.class_names or tuple(map(str, range(self.classes)))


def describe(
    client: ClientConfig,
    federation: FederationConfig,
    images: LabelledImages,
    *,
    charter: bytes,
    model: str | None,
    resized: bool,
) -> Description:
    """The description of a client's model, before it has learnt anything.

    Args:
        client: the client's configuration.
        federation: the federation's.
        images: what it trains on.
        charter: digest of the charter.
        model: a name of the zoo or module:function; None for a model that was handed over.
        resized: whether the images were resized to the federation's shape.
    """
    private, names = federation.record_private, federation.task.class_names
    if names is None and not private:  # those of a client's folders are no fact of the charter
        names = images.class_names
    return Description(
        written_by=f"secure-codream {metadata.version('secure-codream')}",
        model=model,
        code=_digest_of(model),
        federation=federation.federation.name,
        client=client.name,
        course=federation.federation.course,
        charter=charter.hex(),
        shape=images.shape,
        classes=images.classes,
        class_names=names,
        standardisation=None if images.scale is None else Standardisation(images.scale.mean, images.scale.std),
        resized=resized,
        private=private,
    )


def figures_of(metrics: Metrics) -> Figures:
    """What a client measured, as its model's file has it."""
    return Figures(test_accuracy=metrics.accuracy, train_accuracy=metrics.train_accuracy)


def _digest_of(model: str | None) -> str | None:
    if model is None or not is_reference(model):
        return None
    try:
        return source_digest(model)
    except ConfigError:  # a package's own file, or a compiled module: whoever uses the model vouches for it
        return None
