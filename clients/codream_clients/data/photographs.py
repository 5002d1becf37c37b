"""Two public photographs, from which the start "photos" takes its crops: those that scikit-learn ships.

china.jpg and flower.jpg (CC BY 2.0; photographs by flickr's danielbuechele and vultilion), 427 x 640 pixels in colour,
decoded by Pillow. Decoders of JPEG may differ by a level from version to version, and a start must be alike to the
last byte: so a charter carries the digest of the decoded pixels (`[dreams] photographs`), and who decodes others is
refused before anything is computed, and does not diverge.
"""

from typing import Any

import numpy as np

from codream_protocols.errors import LocalProtocolError
from codream_protocols.starts import photographs_digest

__all__ = ["photographs_digest", "public_photographs"]


def public_photographs(expected: bytes | None = None) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]:
    """The photographs, each uint8 of shape (427, 640, 3), always in the same order.

    Args:
        expected: the charter's `photographs_digest`; None asks for no check, as whoever makes the charter does, and
            whoever is alone with a federation in one process.

    Raises:
        LocalProtocolError: scikit-learn or Pillow is missing, or this machine decodes other pixels than `expected`.
    """
    try:
        from sklearn.datasets import load_sample_images

        found = load_sample_images()
    except ImportError as error:  # scikit-learn asks for Pillow only when it is called
        raise LocalProtocolError(
            f"no way to read the public photographs ({error})",
            "scikit-learn and Pillow",
            "pip install 'secure-codream[client]'",
        ) from error
    photographs = tuple(np.ascontiguousarray(image) for image in found.images)
    if expected is not None and photographs_digest(photographs) != expected:
        raise LocalProtocolError(
            f"photographs of digest {photographs_digest(photographs).hex()}",
            f"digest {expected.hex()}",
            "this machine decodes JPEG differently; install the Pillow that the charter was made with",
        )
    return photographs
