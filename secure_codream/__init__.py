"""Secure CoDream: federated learning by exchanging dreams, under secure aggregation.

What a person uses: the command line (`cli`), the public API (`Client`, `Server`, `run_local`, `open_model`),
configuration, provisioning, the demonstration and its report, experiments.
"""

import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("secure-codream runs on Linux and macOS; on Windows, run it in WSL 2")

if TYPE_CHECKING:
    from secure_codream.api.client import Client
    from secure_codream.api.local import LocalRun, run_local
    from secure_codream.api.server import Server
    from secure_codream.use.model import open_model

__all__ = ["Client", "LocalRun", "Server", "open_model", "run_local"]

# Loaded when asked for: all but `Server` need torch, and an aggregator must run without.
_HOMES = {
    "Client": "api.client",
    "LocalRun": "api.local",
    "Server": "api.server",
    "open_model": "use.model",
    "run_local": "api.local",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("secure-codream")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from secure_codream.extras import told_of

    try:
        return getattr(import_module(f"secure_codream.{_HOMES[name]}"), name)
    except ImportError as error:
        raise told_of(error) or error from None
