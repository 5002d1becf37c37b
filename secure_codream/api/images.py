"""Arrays that a script hands over, through the gate that files go through."""

from __future__ import annotations

from typing import Any

import numpy as np

from codream_clients.data.datasets import DatasetError, LabelledImages
from codream_clients.data.given import given_images
from codream_clients.data.pixels import RawImages
from codream_clients.data.understanding import Notes
from secure_codream.configuration.reading import ConfigError

Images = LabelledImages | tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def given(parts: dict[str, Images], **known: Any) -> tuple[dict[str, RawImages] | dict[str, LabelledImages], Notes]:
    """The parts as `given_images` understands them, and what it noticed; raises `ConfigError`."""
    notes = Notes()
    try:
        return given_images(parts, notes=notes, **known), notes
    except DatasetError as error:
        raise ConfigError(f"images: {error}") from error
