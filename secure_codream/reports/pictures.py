"""Images for a page: PNG from pixels, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def png(pixels: Pixels) -> bytes:
    """Encode `pixels`, uint8 of shape (H, W) for grey or (H, W, 3) for RGB, as PNG (RFC 2083)."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"found {pixels.dtype} {pixels.shape}; expected uint8 (H, W) or (H, W, 3)")
    height, width = pixels.shape[:2]
    colour_type = 0 if pixels.ndim == 2 else 2
    # Each row begins with its filter; 0 is none.
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(pixels: Pixels) -> str:
    """Pixels as a page can hold them."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def stretched(values: npt.NDArray[Any]) -> Pixels:
    """Values to 0..255, from the 1st to the 99th per cent of them."""
    low, high = np.percentile(values, (1, 99))
    scaled = (values.astype(np.float64) - low) / max(float(high - low), 1e-12)
    return np.asarray(np.clip(255 * scaled + 0.5, 0, 255), dtype=np.uint8)


def picture(image: npt.NDArray[np.float32]) -> Pixels:
    """A dream (C, H, W) as pixels: three channels in colour, otherwise the channels' mean in grey."""
    return stretched(image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0))
