"""Which images a client trains on, as digests: of each as it is stored, whatever it was standardised by, and of all."""

import hashlib

from codream_clients.data.datasets import LabelledImages
from codream_clients.data.pixels import pixels_of
from codream_clients.data.units import digests


def stored_digests(data: LabelledImages) -> list[bytes]:
    """Of each image, as bytes from 0 to 255 where its scale is known: the same on every scale, not in every size."""
    return digests(data.images if data.scale is None else pixels_of(data.images, data.scale))


def digest_of(data: LabelledImages) -> str:
    """Of all that training uses of them: images, labels, and how they are varied, in any order; 64 hexadecimal."""
    labelled = sorted(image + label.tobytes() for image, label in zip(digests(data.images), data.labels, strict=True))
    whole = hashlib.sha256(f"{data.shape}|{data.classes}|{data.augment}|".encode())
    whole.update(b"".join(labelled))
    return whole.hexdigest()
