"""One picture: what its header says of it, and its pixels as bytes.

A picture is read as a viewer shows it: turned as its EXIF orientation says, palettes as their colours, an opaque alpha
channel left out. Refused is what can be read in two ways: more than 8 bits a channel (which window?), pixels that are
transparent (over which background?), and several pages, unless `pages` says which are meant. Formats are those named
here and no others, whatever a file's content says: Pillow would start programs for some.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from codream_clients.data.datasets import DatasetError
from codream_clients.data.understanding import Notes

if TYPE_CHECKING:
    from PIL.Image import Image

Pages = Literal["first", "each"]
SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
MAX_FILE_SIDE = 8192
"""Pixels a side that a file may have before it is resized; larger ones are refused before they are unpacked."""
MAX_PAGES = 4096

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_ORIENTATION, _BITS = 0x0112, 258  # of EXIF and of TIFF
_ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True)
class Page:
    """What a header says of one page: its number in the file, its sides once it is turned, and whether it is grey."""

    number: int
    height: int
    width: int
    grey: bool


def pages_of(file: Path, pages: Pages | None, notes: Notes) -> list[Page]:
    """The pages of `file` that count, without unpacking any.

    `pages`: of several, the "first" or "each"; None refuses several.
    Raises `DatasetError`, which names the file, for what is no picture, is too large, or could be read in two ways.
    """
    with _opened(file) as image:
        count = _count(file, image, pages, notes)
        found = []
        for number in range(count):
            if number:
                image.seek(number)
            found.append(_page(file, image, number))
            depth = "black and white" if image.mode == "1" else f"8 bits, {image.mode}"
            notes.forms[f"{found[-1].width} x {found[-1].height} pixels, {depth}"] += 1
        return found


def _count(file: Path, image: "Image", pages: Pages | None, notes: Notes) -> int:
    """How many pages count."""
    there = int(getattr(image, "n_frames", 1))
    if there == 1:
        return 1
    if image.format == "MPO":  # of a phone; by its standard the first is the picture, the others are views of it
        notes.counts("further pictures of a phone in one .jpg, left out")
        return 1
    if pages is None:
        raise DatasetError(
            f'{file}: found {there} pages; one picture a file is needed, or pages = "first" or "each" under [data]'
        )
    if there > MAX_PAGES:
        raise DatasetError(f"{file}: found {there} pages; at most {MAX_PAGES} are allowed")
    if pages == "first":
        notes.counts("further pages left out, as pages says", there - 1)
        return 1
    notes.counts("pages of stacks, each an image of its own, as pages says", there)
    return there


def _page(file: Path, image: "Image", number: int) -> Page:
    if image.mode not in _GREY + _COLOUR or _is_deep(image):
        raise DatasetError(
            f"{file}: found mode {image.mode!r}{' of more than 8 bits' if _is_deep(image) else ''}; 8 bits a channel, "
            "grey or colour, are needed: choose a window of the values, and convert the picture"
        )
    width, height = image.size
    if width > MAX_FILE_SIDE or height > MAX_FILE_SIDE:
        raise DatasetError(f"{file}: found {width} x {height} pixels; at most {MAX_FILE_SIDE} a side are allowed")
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:  # Pillow turns a TIFF by itself
        width, height = height, width
    return Page(number, height, width, image.mode in _GREY or _has_grey_palette(image))


def _is_deep(image: "Image") -> bool:
    """Whether there are more than 8 bits a channel, which Pillow drops in silence where the picture is in colour."""
    depths = getattr(image, "tag_v2", {}).get(_BITS, ())
    if max(depths if isinstance(depths, tuple) else (depths,), default=8) > 8:
        return True
    return any(_names_16_bits(tile.args) for tile in getattr(image, "tile", ()))


def _names_16_bits(arguments: Any) -> bool:
    """Whether a decoder's arguments are those of deep pixels; a PPM's are (mode, largest value)."""
    if isinstance(arguments, str):
        return ";16" in arguments
    if not isinstance(arguments, tuple) or not arguments or not isinstance(arguments[0], str):
        return False
    by_maximum = len(arguments) == 2 and isinstance(arguments[1], int) and arguments[1] > 255
    return ";16" in arguments[0] or by_maximum


def _has_grey_palette(image: "Image") -> bool:
    if image.mode not in ("P", "PA"):
        return False
    colours = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def pixels_of(
    file: Path, pages: Sequence[Page], form: tuple[int, int, int], notes: Notes
) -> Iterator[NDArray[np.uint8]]:
    """The pixels (height, width, channels) of these pages, in `form`, resized where they are of other sides.

    Raises `DatasetError`, which names the file, for what cannot be unpacked or is transparent anywhere.
    """
    with _opened(file) as image:
        for page in pages:
            if page.number:
                image.seek(page.number)
            yield _pixels(file, image, form, notes)


def _pixels(file: Path, image: "Image", form: tuple[int, int, int], notes: Notes) -> NDArray[np.uint8]:
    from PIL import Image as Pillow
    from PIL import ImageOps

    height, width, channels = form
    orientation = image.getexif().get(_ORIENTATION, 1)
    turned = ImageOps.exif_transpose(image)
    if orientation in range(2, 9):
        notes.counts("turned as their EXIF orientation says")
    if turned.has_transparency_data:
        if turned.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise DatasetError(
                f"{file}: found transparent pixels; what lies behind them cannot be known: put the picture onto a "
                "background, and save it without transparency"
            )
        notes.counts("read without their alpha channel, which is opaque")
    if turned.mode == "CMYK":
        notes.counts("colours for print (CMYK) converted without a profile")
    if channels == 1 and turned.mode in _GREY:
        converted = turned.convert("L")
    else:
        converted = turned.convert("RGB")
        if channels == 1:
            converted = converted.convert("L")
    if converted.size != (width, height):
        converted = converted.resize((width, height), Pillow.Resampling.BILINEAR)
    return np.asarray(converted, np.uint8).reshape(height, width, channels)


@contextmanager
def _opened(file: Path) -> Iterator["Image"]:
    from PIL import Image as Pillow

    Pillow.init()
    try:
        with Pillow.open(file, formats=_FORMATS) as image:
            yield image
    except DatasetError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DatasetError(f"{file}: found no image that can be read ({type(error).__name__}: {error})") from error
