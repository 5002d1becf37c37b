"""The scattering transform of images: features that are fixed and public, since no image of anybody made them.

Two orders of Morlet wavelets, at two scales and eight angles, each followed by its modulus, then a low-pass
(Bruna and Mallat, TPAMI 2013). A small model on such features needs far fewer private steps than one that must learn
features itself (Tramer and Boneh, ICLR 2021, arXiv 2011.11660). Filters and numbers are those of kymatio 0.3.0's
`Scattering2D(J=2, L=8)` (docs/decisions/0012-public-features-and-votes.md), but for two things: images go on at their
borders with the pixel next to it, and the modulus has a gradient everywhere, along which dreams move.

Nothing is trained and nothing is kept: the layer has neither weights nor buffers, so that none of it is summed,
averaged, noised or saved.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

ANGLES = 8
STRIDE = 4
"""Pixels of an image's side to one of the features'."""
COEFFICIENTS = 1 + 2 * ANGLES + ANGLES**2
"""Channels of features to one of an image: the mean, two scales of wavelets, and those of the finer's modulus."""

_FINE, _COARSE = 0.8, 1.6  # deviations of the wavelets' envelopes, in pixels
_REACH = 3.0  # deviations of an envelope, along its longer axis, beyond which a filter is cut off
_SLANT = 4 / ANGLES
_SMALLEST = 1e-12  # beneath the modulus's root, whose gradient at 0 would be infinite


class Scattering(nn.Module):
    """Images (N, C, H, W) -> features (N, `COEFFICIENTS` x C, H / `STRIDE`, W / `STRIDE`), rounded up; sides from 1 on.

    Of each channel of an image: the low-pass, then the first order (scale, angle), then the second (angle of the finer
    wavelet, angle of the coarser).
    """

    def __init__(self) -> None:
        super().__init__()
        self._fine, self._coarse = _wavelets(_FINE), _wavelets(_COARSE)
        self._low, self._low_halved = _low_pass(_COARSE), _low_pass(_COARSE / 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        count, channels, height, width = images.shape
        image = images.reshape(-1, 1, height, width)
        fine = _modulus(image, self._fine, 1)
        coarse = _modulus(image, self._coarse, 2)
        second = _modulus(fine.reshape(-1, 1, height, width), self._coarse, 2)
        features = [
            _filtered(image, self._low, STRIDE),
            _smooth(fine, self._low, STRIDE),
            _smooth(coarse, self._low_halved, STRIDE // 2),
            _smooth(second.reshape(image.shape[0], -1, *second.shape[2:]), self._low_halved, STRIDE // 2),
        ]
        return torch.cat(features, dim=1).reshape(count, channels * COEFFICIENTS, *features[0].shape[2:])


def _filtered(maps: torch.Tensor, filters: torch.Tensor, stride: int) -> torch.Tensor:
    """(B, 1, H, W) by filters (F, 1, S, S), at every `stride`-th pixel from the first on: (B, F, H', W')."""
    around = filters.shape[-1] // 2
    edged = functional.pad(maps, (around,) * 4, mode="replicate")
    return functional.conv2d(edged, filters.to(maps), stride=stride)


def _modulus(maps: torch.Tensor, wavelets: torch.Tensor, stride: int) -> torch.Tensor:
    """The modulus of maps (B, 1, H, W) by each wavelet: (B, `ANGLES`, H', W')."""
    parts = _filtered(maps, wavelets, stride)
    return (parts[:, :ANGLES].square() + parts[:, ANGLES:].square() + _SMALLEST).sqrt()


def _smooth(maps: torch.Tensor, low_pass: torch.Tensor, stride: int) -> torch.Tensor:
    """Each channel of (B, F, H, W) by itself."""
    count, channels, height, width = maps.shape
    smooth = _filtered(maps.reshape(-1, 1, height, width), low_pass, stride)
    return smooth.reshape(count, channels, *smooth.shape[2:])


def _wavelets(deviation: float) -> torch.Tensor:
    """Morlet wavelets of all angles, real parts before imaginary ones: (2 x `ANGLES`, 1, S, S)."""
    found = [_morlet(deviation, (ANGLES // 2 - 1 - number) * math.pi / ANGLES) for number in range(ANGLES)]
    return _as_filters(np.stack([*(wavelet.real for wavelet in found), *(wavelet.imag for wavelet in found)]))


def _morlet(deviation: float, angle: float) -> NDArray[np.complex128]:
    """A Gabor function less as much of its envelope that the sum is 0, whatever the angle."""
    rows, columns = _places(deviation / _SLANT)
    along = rows * math.cos(angle) + columns * math.sin(angle)
    across = columns * math.cos(angle) - rows * math.sin(angle)
    envelope = np.exp(-(along**2 + (_SLANT * across) ** 2) / (2 * deviation**2))
    wave = envelope * np.exp(1j * (0.75 * math.pi * _FINE / deviation) * along)
    return np.asarray((wave - wave.sum() / envelope.sum() * envelope) * _SLANT / (2 * math.pi * deviation**2))


def _low_pass(deviation: float) -> torch.Tensor:
    """A Gaussian whose sum is 1: (1, 1, S, S)."""
    rows, columns = _places(deviation)
    envelope = np.exp(-(rows**2 + columns**2) / (2 * deviation**2))
    return _as_filters((envelope / envelope.sum())[None])


def _places(deviation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reach = math.ceil(_REACH * deviation)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    return rows, columns


def _as_filters(values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values[:, None].astype(np.float32))
