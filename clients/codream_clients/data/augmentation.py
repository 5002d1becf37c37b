"""Augmentation: each image of a mini-batch a little different from one epoch to the next.

    shift       moved by up to 1/8 of its side, both ways, the border repeated: digits, scans, anything with a direction
    affine      turned by up to 15 degrees, sheared by up to 10, 15 % larger or smaller, moved by up to 1/8 of its
                side, the border repeated: handwriting (after Simard et al., ICDAR 2003, section 2)
    flip-crop   mirrored left to right every other time, and cropped out of its reflection by up to 1/8 of its side:
                natural images (He et al., CVPR 2016, section 4.2; reflection after Zagoruyko and Komodakis, BMVC 2016)

Draws come from a generator on the CPU, so that they are the same on every device.

Dreams have views, too: `with_views` varies each of them, the same for everybody. A label costs ten
numbers where a dream costs hundreds and hundreds of local steps, so the clients label each dream several times over,
and learn how their ensemble changes around it. A label of another image would be learnt without a word, and PyTorch
promises nobody the same draws in its next version: so those of views are words of the protocol's own stream.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from codream_clients.data.datasets import Augment
from codream_protocols.courses.codream import ViewsBy
from codream_protocols.starts import SEED_BYTES, draw

Words = np.ndarray[Any, np.dtype[np.uint32]]

TURN, SHEAR, SCALE = 15.0, 10.0, 0.15  # degrees, degrees, a fraction
_WARPS, _MIXES = 5, 7  # numbers that say how one image is varied


def augmentation_generator(seed: int) -> torch.Generator:
    """The generator of one training's variations: fixed by `seed`, and apart from the order that it draws."""
    return torch.Generator().manual_seed((seed * 6364136223846793005 + 1442695040888963407) % (1 << 63))


def augment_batch(images: torch.Tensor, augment: Augment, generator: torch.Generator) -> torch.Tensor:
    """`images` (B, C, H, W), varied as `augment` says: a new tensor of that shape; with "none" the same tensor.

    `generator` lives on the CPU and is advanced. Sides of at least 2 pixels are needed to vary anything.
    """
    if augment == "none" or min(images.shape[2:]) < 2:
        return images
    if augment == "flip-crop":
        images = _mirrored(images, torch.rand(len(images), generator=generator) < 0.5)
    if augment == "affine":
        return warp_batch(images, generator)
    return shift_batch(images, _reach(images), generator, border="replicate" if augment == "shift" else "reflect")


def shift_batch(
    images: torch.Tensor,
    reach: int,
    generator: torch.Generator,
    *,
    border: Literal["replicate", "reflect"] = "replicate",
) -> torch.Tensor:
    """`images` (B, C, H, W), each moved by up to `reach` pixels both ways: a new tensor; the same one for a reach of 0.

    What comes in from outside repeats the border or reflects the image, for which its sides must exceed `reach`.
    `generator` lives on the CPU and is advanced.
    """
    if reach == 0:
        return images
    return _shifted(images, torch.randint(0, 2 * reach + 1, (2, len(images)), generator=generator), reach, border)


def _reach(images: torch.Tensor) -> int:
    """How far images are moved: 1/8 of the shorter side, in pixels."""
    return max(1, min(images.shape[2:]) // 8)


def _mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Those that `which` (B,) says, left to right."""
    return torch.where(which.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def _shifted(images: torch.Tensor, offsets: torch.Tensor, reach: int, border: str) -> torch.Tensor:
    """Moved by `offsets` (2, B), from 0 to 2 * reach; reach leaves an image where it is."""
    padded = functional.pad(images, [reach] * 4, mode=border)
    offsets = offsets.to(images.device).unsqueeze(2)
    rows = offsets[0] + torch.arange(images.shape[2], device=images.device)
    columns = offsets[1] + torch.arange(images.shape[3], device=images.device)
    numbers = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    channels = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return padded[numbers, channels, rows[:, None, :, None], columns[:, None, None, :]]


def warp_batch(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`images` (B, C, H, W), each under an affine map of its own, as "affine" says: a new tensor of that shape.

    Pixels between pixels are interpolated, what comes in from outside repeats the border. `generator` lives on the CPU
    and is advanced.
    """
    return _warped(images, 2 * torch.rand(_WARPS, len(images), generator=generator) - 1)


def _warped(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Under the maps of `draws` (5, B), uniform in [-1, 1]: turn, shear, scale, and both shifts."""
    draws = draws.to(images)
    angle, shear = math.radians(TURN) * draws[0], math.tan(math.radians(SHEAR)) * draws[1]
    scale, shift = 1 + SCALE * draws[2], draws[3:5] / 4  # grids run from -1 to 1, so 1/4 is 1/8 of a side
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = (
        torch.stack([cosine, shear * cosine - sine, shift[0]], dim=1),
        torch.stack([sine, shear * sine + cosine, shift[1]], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mixed_batch(images: torch.Tensor, words: Words) -> torch.Tensor:
    """`images` (B, C, H, W), each varied by "flip-crop", with a box in it cut out of another one: a new tensor.

    CutMix (Yun et al., ICCV 2019): the box has the image's proportions, its area is uniform in [0, 1] of the image's
    before what lies outside is left out.

    Args:
        images: as said.
        words: uniform, (7, B). Which pixel comes from where follows from them to the last bit: doubles that are rounded
            correctly, and no tensor library's.
    """
    mirrored, *offsets, order, share, across, down = words
    varied = images
    if min(images.shape[2:]) >= 2:
        reach = _reach(images)
        moves = np.stack(offsets).astype(np.int64) * (2 * reach + 1) >> 32
        flipped = _mirrored(images, torch.from_numpy(mirrored >= 1 << 31))
        varied = _shifted(flipped, torch.from_numpy(moves), reach, "reflect")
    others = varied[torch.from_numpy(np.argsort(order, kind="stable")).to(images.device)]
    half = np.sqrt(_unit(share)) / 2
    rows, columns = (
        torch.from_numpy(np.abs((np.arange(side) + 0.5) / side - _unit(middle)[:, None]) < half[:, None])
        for side, middle in zip(images.shape[2:], (down, across), strict=True)
    )
    box = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(box, others, varied)


def _unit(words: Words) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uniform in [0, 1), exactly."""
    return words.astype(np.float64) * 2.0**-32


def _warped_by(images: torch.Tensor, words: Words) -> torch.Tensor:
    return _warped(images, torch.from_numpy(2 * _unit(words) - 1))


def with_views(dreams: torch.Tensor, views: int, by: ViewsBy = "affine") -> torch.Tensor:
    """`dreams` (B, C, H, W), and after them `views` variations of all of them: ((1 + views) * B, C, H, W).

    Which variations follows from B, `views` and `by` alone, so that all clients label the same images, and no image but
    the dreams need be sent: with "cutmix" to the last bit, with "affine" up to the rounding of their devices.
    """
    varied, numbers = (_warped_by, _WARPS) if by == "affine" else (mixed_batch, _MIXES)
    each = numbers * len(dreams)
    words = (draw(bytes(SEED_BYTES), "views", each, each * view).reshape(numbers, len(dreams)) for view in range(views))
    return torch.cat([dreams, *(varied(dreams, one) for one in words)])
