"""A sheet of images with their labels, one row a class: what a person looks at before a model does."""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import RawImages
from codream_clients.data.understanding import Understanding

TILE, COLUMNS, MOST_CLASSES = 72, 10, 50
_WORDS = 240  # pixels for a class's name
_GAP = 4


def write_sheet(file: BinaryIO, part: RawImages | LabelledImages, understood: Understanding) -> None:
    """Write a PNG of the first images of each class of `part`, each beside its class's name and number.

    At most 50 classes have a row.
    """
    from PIL import Image, ImageDraw

    rows = min(part.classes, MOST_CLASSES)
    sheet = Image.new("RGB", (_WORDS + COLUMNS * (TILE + _GAP), rows * (TILE + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for label in range(rows):
        of_class = np.flatnonzero(part.labels == label)
        top = label * (TILE + _GAP)
        words = f"{label}: {understood.name_of(label)}"[:34].encode("ascii", "replace").decode()  # what its font has
        draw.text((_GAP, top + TILE // 2 - 12), f"{words}\n{len(of_class)} images", fill="black")
        for column, number in enumerate(of_class[:COLUMNS]):
            tile = Image.fromarray(_shown(part, int(number)))
            tile.thumbnail((TILE, TILE))
            if max(tile.size) < TILE:
                scale = TILE // max(tile.size)
                tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (_WORDS + column * (TILE + _GAP), top))
    sheet.save(file, "PNG")


def _shown(part: RawImages | LabelledImages, number: int) -> NDArray[np.uint8]:
    """One image as bytes (H, W) or (H, W, 3); of other channels their mean, of standardised values their range."""
    if isinstance(part, RawImages):
        image = part.pixels[number]
    else:
        values = part.images[number].transpose(1, 2, 0)
        reach = max(float(np.ptp(values)), 1e-12)
        image = np.asarray(np.rint(255 * (values - values.min()) / reach), np.uint8)
    if image.shape[2] == 3:
        return np.asarray(image, np.uint8)
    return np.asarray(image[..., 0] if image.shape[2] == 1 else image.mean(axis=2), np.uint8)
