"""Where tensors live: a CUDA GPU, an Apple GPU (MPS), or the CPU.

"auto" takes the first of these that this machine has; a device asked for by name is taken or refused, never
replaced in silence, because timings and bit-exact results depend on it.
"""

import torch

ALLOWED_DEVICES = "'auto', 'cpu', 'cuda', 'cuda:<index>', 'mps'"


class DeviceError(ValueError):
    """The device asked for is unknown, or this machine does not have it."""


def pick_device(preferred: str = "auto") -> torch.device:
    """The device to compute on.

    `preferred` is "auto" (CUDA, else MPS, else CPU), "cpu", "cuda", "cuda:<index>" or "mps".
    Raises `DeviceError` for any other name, and for a device that this machine lacks.
    """
    if preferred == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(preferred)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {preferred!r}; allowed are {ALLOWED_DEVICES}") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {preferred!r} is not supported; allowed are {ALLOWED_DEVICES}")
    index = int(preferred.partition(":")[2] or 0)  # torch.device keeps it in eight bits: cuda:999 is cuda:-25 there
    if device.type == "cuda" and index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {preferred!r} asked for, but {torch.cuda.device_count()} CUDA devices are visible; "
            "choose 'auto' or 'cpu'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' asked for, but this machine has none; choose 'auto' or 'cpu'")
    return device
