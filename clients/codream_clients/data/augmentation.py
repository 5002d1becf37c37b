"""Augmentation: each image of a mini-batch a little different from one epoch to the next.

    shift       moved by up to 1/8 of its side, both ways, the border repeated: digits, scans, anything with a direction
    affine      turned by up to 15 degrees, sheared by up to 10, 15 % larger or smaller, moved by up to 1/8 of its
                side, the border repeated: handwriting (after Simard et al., ICDAR 2003, section 2)
    flip-crop   mirrored left to right every other time, and cropped out of its reflection by up to 1/8 of its side:
                natural images (He et al., CVPR 2016, section 4.2; reflection after Zagoruyko and Komodakis, BMVC 2016)

Draws come from a generator on the CPU, so that they are the same on every device.

Dreams have views, too: `with_views` varies each of them, the same for everybody. A label costs ten
numbers where a dream costs hundreds and hundreds of local steps, so the clients label each dream several times over,
and learn how their ensemble changes around it.
"""

import math
from typing import Literal

import torch
from torch.nn import functional

from codream_clients.data.datasets import Augment
from codream_protocols.courses.codream import ViewsBy

TURN, SHEAR, SCALE = 15.0, 10.0, 0.15  # degrees, degrees, a fraction


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
        mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if augment == "affine":
        return warp_batch(images, generator)
    reach = max(1, min(images.shape[2:]) // 8)
    return shift_batch(images, reach, generator, border="replicate" if augment == "shift" else "reflect")


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
    padded = functional.pad(images, [reach] * 4, mode=border)
    offsets = torch.randint(0, 2 * reach + 1, (2, len(images), 1), generator=generator).to(images.device)
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
    draws = (2 * torch.rand(5, len(images), generator=generator) - 1).to(images)
    angle, shear = math.radians(TURN) * draws[0], math.tan(math.radians(SHEAR)) * draws[1]
    scale, shift = 1 + SCALE * draws[2], draws[3:5] / 4  # grids run from -1 to 1, so 1/4 is 1/8 of a side
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = (
        torch.stack([cosine, shear * cosine - sine, shift[0]], dim=1),
        torch.stack([sine, shear * sine + cosine, shift[1]], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mixed_batch(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`images` (B, C, H, W), each varied by "flip-crop", with a box in it cut out of another one: a new tensor.

    CutMix (Yun et al., ICCV 2019): the box has the image's proportions, its area is uniform in [0, 1] of the image's
    before what lies outside is left out. `generator` lives on the CPU and is advanced.
    """
    varied = augment_batch(images, "flip-crop", generator)
    others = varied[torch.randperm(len(images), generator=generator).to(images.device)]
    share, across, down = torch.rand(3, len(images), 1, generator=generator).to(images.device)
    half = share.sqrt() / 2
    rows, columns = (
        ((torch.arange(side, device=images.device) + 0.5) / side - middle).abs() < half
        for side, middle in zip(images.shape[2:], (down, across), strict=True)
    )
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], others, varied)


def with_views(dreams: torch.Tensor, views: int, by: ViewsBy = "affine") -> torch.Tensor:
    """`dreams` (B, C, H, W), and after them `views` variations of all of them: ((1 + views) * B, C, H, W).

    Which variations follows from B, `views` and `by` alone, so that all clients label the same images, up to the
    rounding of their devices, and no image but the dreams need be sent.
    """
    generator = torch.Generator().manual_seed(0)
    varied = warp_batch if by == "affine" else mixed_batch
    return torch.cat([dreams, *(varied(dreams, generator) for _ in range(views))])
