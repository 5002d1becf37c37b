"""Where dreams start: images that everybody makes alike from the public start seed (design: protocol 2, section 2).

Nothing travels and nothing is revealed: server and clients draw the same images from the same 32 bytes. So every byte
must be alike on every machine and under every version of Python and numpy:

- Randomness is the AES-256-CTR stream (NIST SP 800-38A) under `digest("start " + rule, seed)`, read as little-endian
  words of 32 bits. numpy's own generators may change their streams between versions.
- Pictures are drawn in integers, on a grid of up to 4,096 units a side. Floats appear at the very end and only in
  single correctly rounded operations of IEEE 754 (+, -, *, /): no exp, no sine, no matrix product, and no sum of
  floats, whose order is a library's business.

Four rules. **noise** is about N(0, 1). **strokes** are pen strokes, for data that look written; **shapes** are filled
ellipses, rectangles and triangles on a gradient, for data that show things; **photos** are crops of given photographs
(Asano and Saeed, ICLR 2023, distil from crops of a single one). The last three are pictures and lie in [-1, 1], or are
`standardised` as the clients' own images are. An image depends on seed, rule, shape and its own number only, so a
shorter batch is the beginning of a longer one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from codream_protocols.errors import LocalProtocolError
from codream_protocols.keyschedule import digest, number

Floats32 = np.ndarray[Any, np.dtype[np.float32]]
Words32 = np.ndarray[Any, np.dtype[np.uint32]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Shape = tuple[int, int, int]
StartRule = Callable[[bytes, int, Shape], Floats32]

PHOTOS = "photos"
PICTURES = {"strokes": 0.28, "shapes": 0.2, PHOTOS: 0.2}
"""Rules whose images are pictures, with the deviation of a picture's pixels, divided by 255, in the mean."""
START_NAMES = ("noise", *PICTURES)

SEED_BYTES = 32
MAX_COUNT = 1_000_000
MAX_CHANNELS = 16
MAX_SIDE = 1024
MAX_VALUES = 1 << 30  # 4 GiB of float32
MAX_WORDS = 1 << 28  # in one call of `draw`, 1 GiB
MAX_PHOTOGRAPH_SIDE = 4096  # 255 x 4096^2 < 2^32: the sum of any block fits a word


def start_rule(name: str, photographs: tuple[Pixels, ...] = ()) -> StartRule:
    """The rule called `name`: a function of (seed, count, (C, H, W)) that gives float32, shape (count, C, H, W).

    Args:
        name: one of `START_NAMES`.
        photographs: for `PHOTOS` only, see `photo_crops`; they are checked here already.

    Raises:
        LocalProtocolError: another name, photographs missing or of the wrong form, or photographs for another rule.
    """
    if name not in START_NAMES:
        raise LocalProtocolError(f"start {name!r}", " or ".join(START_NAMES))
    if name == PHOTOS:
        _check_photographs(photographs)
        return partial(photo_crops, photographs=photographs)
    if photographs:
        raise LocalProtocolError(f"{len(photographs)} photographs for start {name!r}", "photographs for 'photos' only")
    return {"noise": noise, "strokes": strokes, "shapes": shapes}[name]


def standardised(rule: StartRule, mean: tuple[float, ...], std: tuple[float, ...], contrast: float) -> StartRule:
    """The same pictures on the scale of images that are standardised by `mean` and `std`.

    Labels of pictures with another contrast than the teachers' own images say less of them. Images that are
    standardised by their own `std` have a deviation of about one. Pictures go from black to white, so that where `std`
    is small, as of X-rays, they would have several: they are drawn together to one.

    Args:
        rule: one of `PICTURES`, whose values of [-1, 1] are pixels of 0 to 255.
        mean: of pixels divided by 255, one for each channel, or one for all.
        std: their deviations, above 0, in the same form.
        contrast: what the rule's pictures have, `PICTURES[name]`.
    """
    gain = min(1.0, math.fsum(std) / len(std) / contrast)
    slopes = np.array([0.5 / each * gain for each in std], dtype=np.float32)
    shifts = np.array([(0.5 - m) / s * gain for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    return partial(_standardised, rule=rule, slopes=slopes, shifts=shifts)


def _standardised(
    seed: bytes, count: int, shape: Shape, *, rule: StartRule, slopes: Floats32, shifts: Floats32
) -> Floats32:
    images = rule(seed, count, shape)
    images *= slopes.reshape(1, -1, 1, 1)
    images += shifts.reshape(1, -1, 1, 1)
    return images


def check_start(images: object, count: int, shape: Shape) -> Floats32:
    """Take the images of a user's own rule as they are, or refuse them; nothing is clamped or converted.

    Raises:
        LocalProtocolError: no array, another type than float32, another shape than (count, *shape), or not finite.
    """
    if not isinstance(images, np.ndarray):
        raise LocalProtocolError(f"start images of type {type(images).__name__}", "a numpy array of float32")
    if images.dtype != np.float32:
        raise LocalProtocolError(f"start images of {images.dtype}", "float32", "end the rule with .astype(np.float32)")
    if images.shape != (count, *shape):
        raise LocalProtocolError(f"start images of shape {images.shape}", f"shape {(count, *shape)}")
    if not np.isfinite(images).all():
        raise LocalProtocolError("start images that are not finite", "finite values")
    return images


def draw(seed: bytes, label: str, count: int, skip: int = 0) -> Words32:
    """`count` uniform words of the public stream of (seed, label), from word `skip` on; shape (count,).

    Raises:
        LocalProtocolError: the seed has not 32 bytes, or a number is outside its limits.
    """
    if len(seed) != SEED_BYTES:
        raise LocalProtocolError(f"a start seed of {len(seed)} bytes", f"{SEED_BYTES} bytes")
    if not 0 <= count <= MAX_WORDS or skip < 0:
        raise LocalProtocolError(f"{count} words from word {skip} on", f"0 to {MAX_WORDS} words, from word 0 or later")
    block, inside = divmod(skip, 4)  # CTR counts blocks of 16 bytes, so the stream can be entered anywhere
    stream = Cipher(AES(digest(label, seed)), CTR(block.to_bytes(16, "big"))).encryptor()
    words = np.frombuffer(stream.update(bytes(4 * (inside + count))), dtype="<u4")
    return words[inside:].astype(np.uint32, copy=False)


# -- noise ----------------------------------------------------------------------------------------------------------

_NOISE_WORDS = 6  # for one value: twelve uniforms of sixteen bits
_NOISE_PIECE = 1 << 15  # values made at a time


def noise(seed: bytes, count: int, shape: Shape) -> Floats32:
    """Values close to N(0, 1) and independent: mean 0, variance 1 - 2^-32, within [-6, 6], multiples of 2^-16.

    Irwin-Hall: the sum of twelve uniforms on 0, 1, ..., 65535 less its mean, over 65536. Its excess kurtosis is -0.1.
    All values are exact in float32, so that nothing is rounded at all.

    Raises:
        LocalProtocolError: a seed, count or shape outside the limits of this module.
    """
    _check_size(count, shape)
    values = np.empty((count, *shape), dtype=np.float32)
    flat = values.reshape(-1)
    draw(seed, "start noise", 0)  # refuses a wrong seed even where nothing is drawn
    for first in range(0, len(flat), _NOISE_PIECE):
        part = flat[first : first + _NOISE_PIECE]
        words = draw(seed, "start noise", _NOISE_WORDS * len(part), _NOISE_WORDS * first).reshape(-1, _NOISE_WORDS)
        total = np.zeros(len(part), dtype=np.int64)
        for column in range(_NOISE_WORDS):
            total += (words[:, column] & 0xFFFF) + (words[:, column] >> 16)
        part[:] = (total - 6 * 65535).astype(np.float64) / 65536.0
    return values


# -- drawn pictures: what they share --------------------------------------------------------------------------------

_GRID = 4096  # units along the longer side of a picture, at most
_PIECE = 1 << 16  # pixels drawn at a time: they stay in the processor's cache
# What the pixel values 0, ..., 255 become: (value / 255 - 0.5) / 0.5, each operation rounded once.
_LEVELS: Floats32 = (np.arange(256).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
# 32 directions, vectors of length 1024: a table, because sines differ between mathematical libraries.
_QUARTER = (1024, 1004, 946, 851, 724, 569, 392, 200, 0)
_COSINES = np.array(
    [*_QUARTER, *(-c for c in _QUARTER[7::-1]), *(-c for c in _QUARTER[1:]), *_QUARTER[7:0:-1]], dtype=np.int64
)
_SINES = _COSINES[(np.arange(32) - 8) % 32]


class _Dice:
    """The random numbers of a run of images: each image has `words` words of the stream to itself."""

    def __init__(self, seed: bytes, label: str, first: int, count: int, words: int) -> None:
        self.count = count
        self._words = draw(seed, label, count * words, first * words).reshape(count, words).astype(np.int64)
        self._used = 0

    def roll(self, low: int, high: int | Integers, *shape: int) -> Integers:
        """Integers from `low` to `high`, both included, shape (images, *shape).

        One of n comes with a probability that is off by less than 2^-32: nobody can tell.
        """
        begin = self._used
        self._used += int(np.prod(shape, dtype=np.int64))
        words = self._words[:, begin : self._used]
        if words.shape[1] != self._used - begin:
            raise AssertionError(f"an image needs {self._used} words")
        return low + (words.reshape(self.count, *shape) * (high - low + 1) >> 32)


def _drawn(
    seed: bytes, label: str, count: int, shape: Shape, words: int, paint: Callable[[_Dice, Shape], Integers]
) -> Floats32:
    """`count` pictures that `paint` draws, a run at a time, with pixel values 0 to 255."""
    _check_size(count, shape)
    images = np.empty((count, *shape), dtype=np.float32)
    run = max(1, _PIECE // (shape[1] * shape[2]))
    draw(seed, label, 0)  # refuses a wrong seed even where nothing is drawn
    for first in range(0, count, run):
        dice = _Dice(seed, label, first, min(run, count - first), words)
        images[first : first + run] = _LEVELS[paint(dice, shape)]
    return images


def _pitch_and_side(shape: Shape) -> tuple[int, int]:
    """A pixel, and the shorter side of the picture, in units of the grid."""
    _, height, width = shape
    pitch = _GRID // max(height, width)
    return pitch, min(height, width) * pitch


def _centres(pixels: int, pitch: int) -> Integers:
    """The middles of a row of pixels, in units of the grid from the middle of the row."""
    return (2 * np.arange(pixels, dtype=np.int64) - pixels + 1) * pitch // 2


# -- strokes --------------------------------------------------------------------------------------------------------

_STROKE_WORDS = 128
_STROKES = 3  # of a picture, at most
_MOVES = 7  # of the pen in one stroke, at most


def strokes(seed: bytes, count: int, shape: Shape) -> Floats32:
    """Pen strokes: one to three smooth lines, bright on dark, of about the size and weight of a written digit.

    The pen walks: a stroke has a bend of its own, at times a corner, at times the bend changes sides. One channel:
    background -1. Otherwise every channel has its own random brightness of line and background.

    Raises:
        LocalProtocolError: a seed, count or shape outside the limits of this module.
    """
    return _drawn(seed, "start strokes", count, shape, _STROKE_WORDS, _paint_strokes)


def _paint_strokes(dice: _Dice, shape: Shape) -> Integers:
    channels, height, width = shape
    pitch, side = _pitch_and_side(shape)
    samples = 8 if max(height, width) <= 64 else 16  # of the curve for one move: a round nib must not leave beads
    x, y = _fitted(*_curves(dice, samples), dice, side)
    radius = dice.roll(36, 62)[:, None, None] * side // 1000
    distance = _squared_distance(x, y, _centres(height, pitch), _centres(width, pitch))
    # The edge is one pixel wide: full ink up to half a pixel inside the pen's radius, none from half outside on.
    inner, outer = np.maximum(radius - pitch // 2, 0) ** 2, (radius + (pitch + 1) // 2) ** 2
    ink: Integers = np.clip(255 * (outer - distance) // (outer - inner), 0, 255)[:, None]
    dark_to, bright_from = (0, 208) if channels == 1 else (111, 144)
    dark, bright = dice.roll(0, dark_to, channels, 1, 1), dice.roll(bright_from, 255, channels, 1, 1)
    levels: Integers = dark + ink * (bright - dark) // 255
    return levels


def _curves(dice: _Dice, samples: int) -> tuple[Integers, Integers]:
    """Points along the strokes before they are fitted, as (x, y), each of shape (images, points)."""
    each = (_STROKES,)
    number_of = np.array((1, 1, 1, 1, 2, 2, 3))[dice.roll(0, 6)]
    moves = dice.roll(3, _MOVES, *each)
    bend, heading = dice.roll(-6, 6, *each), dice.roll(0, 31, *each)
    turn = dice.roll(-1, 1, *each, _MOVES)
    corner, side = dice.roll(0, 7, *each, _MOVES), dice.roll(0, 1, *each, _MOVES)
    length = dice.roll(3, 6, *each, _MOVES)
    length[:, 1:] = (length[:, 1:] + 1) // 2  # what is added to a first stroke is shorter
    length[np.arange(_MOVES) >= moves[..., None]] = 0
    sides = 1 - 2 * (np.cumsum(corner == 1, axis=-1) & 1)  # the bend changes sides wherever 1 is rolled
    turn = turn + bend[..., None] * sides + np.where(corner == 0, 10 * (2 * side - 1), 0)
    direction = (heading[..., None] + np.cumsum(turn, axis=-1)) % 32
    points = []
    for table in (_COSINES, _SINES):
        way = np.cumsum(length * table[direction], axis=-1)
        way = np.concatenate((np.zeros_like(way[..., :1]), way), axis=-1)
        low, high = way[:, 0].min(axis=-1), way[:, 0].max(axis=-1)
        # A later stroke has its middle somewhere about the first one, so that they form one sign.
        middle = low[:, None] + (high - low)[:, None] * dice.roll(0, 8, _STROKES - 1) // 8
        own = way[:, 1:]
        own += (middle - (own.min(axis=-1) + own.max(axis=-1)) // 2)[..., None]
        # Strokes beyond an image's own number lie upon its first.
        way = np.where((np.arange(_STROKES) < number_of[:, None])[..., None], way, way[:, :1])
        points.append(_smooth(way[:, : number_of.max()], samples).reshape(dice.count, -1))
    return points[0], points[1]


def _smooth(corners: Integers, samples: int) -> Integers:
    """The quadratic B-spline of control points, from the first to the last; in units of 1 / (2 samples^2)."""
    padded = np.concatenate((corners[..., :1], corners, corners[..., -1:]), axis=-1)[..., None]
    t = np.arange(samples, dtype=np.int64)
    before, after = (samples - t) ** 2, t**2
    return (
        padded[..., :-2, :] * before
        + padded[..., 1:-1, :] * (2 * samples**2 - before - after)
        + padded[..., 2:, :] * after
    )


def _fitted(x: Integers, y: Integers, dice: _Dice, side: int) -> tuple[Integers, Integers]:
    """Curves scaled to 58 to 78 % of `side` and put near the middle, at 0; proportions are kept.

    Three in four of the signs that lie are stood up: what is written is mostly taller than wide.
    """
    wide, tall = np.ptp(x, axis=1), np.ptp(y, axis=1)
    turned = ((wide > tall) & (dice.roll(0, 3) > 0))[:, None]
    x, y = np.where(turned, y, x), np.where(turned, x, y)
    extent = np.maximum(wide, tall)[:, None]
    target = dice.roll(58, 78, 1) * side // 100
    placed = []
    for line in (x, y):
        middle = (line.min(axis=1) + line.max(axis=1))[:, None] // 2
        placed.append((line - middle) * target // extent + dice.roll(-6, 6, 1) * side // 100)
    return placed[0], placed[1]


def _squared_distance(x: Integers, y: Integers, rows: Integers, columns: Integers) -> Integers:
    """Of each pixel to the nearest of an image's points: shape (images, rows, columns)."""
    across = ((columns - x[..., None]) ** 2).astype(np.int32)
    down = ((rows - y[..., None]) ** 2).astype(np.int32)
    nearest = np.full((len(x), len(rows), len(columns)), np.iinfo(np.int32).max, dtype=np.int32)
    candidate = np.empty_like(nearest)
    for point in range(x.shape[1]):
        np.add(across[:, point, None, :], down[:, point, :, None], out=candidate)
        np.minimum(nearest, candidate, out=nearest)
    return nearest.astype(np.int64)


# -- shapes ---------------------------------------------------------------------------------------------------------

_SHAPE_WORDS = 192
_SHAPES = 6  # of a picture, at most


def shapes(seed: bytes, count: int, shape: Shape) -> Floats32:
    """One to six filled ellipses, rectangles and triangles, turned anyhow, over a gradient between two colours.

    Every channel has its own random levels, so that three are colours.

    Raises:
        LocalProtocolError: a seed, count or shape outside the limits of this module.
    """
    return _drawn(seed, "start shapes", count, shape, _SHAPE_WORDS, _paint_shapes)


def _paint_shapes(dice: _Dice, shape: Shape) -> Integers:
    channels, height, width = shape
    pitch, side = _pitch_and_side(shape)
    picture: Integers = _gradient(dice, shape, pitch)
    fine = 4 if max(height, width) <= 16 else 2  # points a pixel and axis at which a shape is sampled
    rows, columns = _centres(height * fine, pitch // fine), _centres(width * fine, pitch // fine)
    number_of = dice.roll(1, _SHAPES)
    for index in range(_SHAPES):
        inside = _inside(dice, rows, columns, side) & (index < number_of)[:, None, None]
        covered = inside.reshape(dice.count, height, fine, width, fine).sum(axis=(2, 4), dtype=np.int64)[:, None]
        level = dice.roll(0, 255, channels, 1, 1)
        picture = (picture * (fine**2 - covered) + level * covered) // fine**2
    return picture


def _gradient(dice: _Dice, shape: Shape, pitch: int) -> Integers:
    """From one colour to another along a direction: shape (images, C, H, W)."""
    channels, height, width = shape
    direction = dice.roll(0, 31, 1, 1)
    along = _centres(width, pitch) * _COSINES[direction] + _centres(height, pitch)[:, None] * _SINES[direction]
    part: Integers = np.clip(along // (4 * max(height, width) * pitch) + 128, 0, 256)[:, None]
    first, last = dice.roll(0, 255, channels, 1, 1), dice.roll(0, 255, channels, 1, 1)
    return first + (last - first) * part // 256


def _inside(dice: _Dice, rows: Integers, columns: Integers, side: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which points one random shape an image covers: shape (images, rows, columns)."""
    kind, direction = dice.roll(0, 2, 1, 1), dice.roll(0, 31, 1, 1)
    x, y = columns - dice.roll(-48, 48, 1, 1) * side // 100, rows[:, None] - dice.roll(-48, 48, 1, 1) * side // 100
    cosine, sine = _COSINES[direction], _SINES[direction]
    # Along both axes of the shape, in units of 1/256 of its half axis (which is 7 to 36 % of the side).
    half = dice.roll(7, 36, 2, 1, 1) * side // 100 + 1
    u = (x * (256 * cosine // half[:, 0]) + y * (256 * sine // half[:, 0])) >> 10
    v = (y * (256 * cosine // half[:, 1]) - x * (256 * sine // half[:, 1])) >> 10
    within = (np.abs(u) <= 256) & (np.abs(v) <= 256)
    triangle = 2 * np.abs(u) <= 256 - v
    return np.where(kind == 0, u * u + v * v <= 1 << 16, within & (triangle | (kind == 1)))  # kind 1: a rectangle


# -- photographs ----------------------------------------------------------------------------------------------------

_CROP_WORDS = 8
_GREY = np.array((77, 150, 29), dtype=np.uint32)  # of 256: red, green, blue


def photo_crops(seed: bytes, count: int, shape: Shape, photographs: tuple[Pixels, ...]) -> Floats32:
    """Random crops: a photograph, a whole factor by which it is made smaller, a place, left and right as is or not.

    A pixel is the mean of a block of factor x factor, rounded. One channel: grey, (77 R + 150 G + 29 B) >> 8.
    Otherwise channel c is the photograph's channel c mod 3; a grey photograph repeats its one.

    Args:
        seed: 32 bytes.
        count: images to make.
        shape: (C, H, W).
        photographs: at least one, each uint8, (rows, columns, 3) or (rows, columns), at least H x W. Their bytes decide
            about the images, so all parties must compare `photographs_digest` first.

    Raises:
        LocalProtocolError: a seed, count, shape or photograph outside the limits.
    """
    _check_size(count, shape)
    _check_photographs(photographs)
    channels, height, width = shape
    for index, photograph in enumerate(photographs):
        if photograph.shape[0] < height or photograph.shape[1] < width:
            raise LocalProtocolError(
                f"photograph {index} of {photograph.shape[0]} x {photograph.shape[1]} pixels",
                f"at least {height} x {width} pixels",
            )
    tables = tuple(_summed(_in_channels(photograph, channels)) for photograph in photographs)
    return _drawn(seed, "start photos", count, shape, _CROP_WORDS, partial(_paint_crops, tables=tables))


def photographs_digest(photographs: tuple[Pixels, ...]) -> bytes:
    """32 bytes that stand for the decoded pixels, in order; for parties that must start from the same photographs.

    Decoders of JPEG may differ by a level from version to version: who has another digest must not take part.

    Raises:
        LocalProtocolError: as `photo_crops`.
    """
    _check_photographs(photographs)
    parts: list[bytes] = []
    for photograph in photographs:
        parts += [b"".join(number(side) for side in photograph.shape), photograph.tobytes()]
    return digest("photographs", *parts)


def _paint_crops(dice: _Dice, shape: Shape, *, tables: tuple[Words32, ...]) -> Integers:
    _, height, width = shape
    rows, columns = (np.array([table.shape[axis] - 1 for table in tables], dtype=np.int64) for axis in (1, 2))
    which = dice.roll(0, len(tables) - 1)
    factor = dice.roll(1, np.minimum(rows // height, columns // width)[which])
    top = dice.roll(0, rows[which] - factor * height)
    left = dice.roll(0, columns[which] - factor * width)
    mirrored = dice.roll(0, 1)
    crops = np.empty((dice.count, *shape), dtype=np.int64)
    for crop, w, f, y, x, m in zip(crops, which, factor, top, left, mirrored, strict=True):
        corners = tables[w][:, y : y + f * height + 1 : f, x : x + f * width + 1 : f]
        across = corners[:, :, 1:] - corners[:, :, :-1]
        block = (across[:, 1:] - across[:, :-1]).astype(np.int64)  # modulo 2^32, which a block's sum stays below
        crop[:] = ((2 * block + f * f) // (2 * f * f))[:, :, :: -1 if m else 1]
    return crops


def _in_channels(photograph: Pixels, channels: int) -> Words32:
    """The photograph as (channels, rows, columns)."""
    planes = photograph.astype(np.uint32)
    if planes.ndim == 2:
        return np.repeat(planes[None], channels, axis=0)
    if channels == 1:
        grey: Words32 = (planes * _GREY).sum(axis=2, dtype=np.uint32) >> np.uint32(8)
        return grey[None]
    return planes.transpose(2, 0, 1)[np.arange(channels) % 3]


def _summed(planes: Words32) -> Words32:
    """Sums over all that lies above and left, modulo 2^32, with a row and a column of zeros before."""
    table = np.zeros((planes.shape[0], planes.shape[1] + 1, planes.shape[2] + 1), dtype=np.uint32)
    table[:, 1:, 1:] = planes
    np.cumsum(table, axis=1, dtype=np.uint32, out=table)
    np.cumsum(table, axis=2, dtype=np.uint32, out=table)
    return table


# -- limits ---------------------------------------------------------------------------------------------------------


def _check_size(count: int, shape: Shape) -> None:
    if not 0 <= count <= MAX_COUNT:
        raise LocalProtocolError(f"{count} start images", f"0 to {MAX_COUNT}")
    if len(shape) != 3:
        raise LocalProtocolError(f"images of shape {shape}", "three numbers: channels, height, width")
    for what, found, most in zip(
        ("channels", "rows", "columns"), shape, (MAX_CHANNELS, MAX_SIDE, MAX_SIDE), strict=True
    ):
        if not 1 <= found <= most:
            raise LocalProtocolError(f"images of {found} {what}", f"1 to {most}")
    values = count * shape[0] * shape[1] * shape[2]
    if values > MAX_VALUES:
        raise LocalProtocolError(f"{values} values in all start images", f"up to {MAX_VALUES}", "take fewer images")


def _check_photographs(photographs: tuple[Pixels, ...]) -> None:
    if not photographs:
        raise LocalProtocolError("no photograph", "at least one", "start 'photos' needs photographs to crop")
    for index, photograph in enumerate(photographs):
        if photograph.dtype != np.uint8 or photograph.ndim not in (2, 3) or photograph.shape[2:] not in ((), (3,)):
            raise LocalProtocolError(
                f"photograph {index} of {photograph.dtype}, shape {photograph.shape}",
                "uint8 of shape (rows, columns) or (rows, columns, 3)",
            )
        if not all(1 <= side <= MAX_PHOTOGRAPH_SIDE for side in photograph.shape[:2]):
            raise LocalProtocolError(
                f"photograph {index} of {photograph.shape[0]} x {photograph.shape[1]} pixels",
                f"sides of 1 to {MAX_PHOTOGRAPH_SIDE} pixels",
            )
