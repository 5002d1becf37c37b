"""Secure CoDream: federated learning by exchanging dreams, under secure aggregation.

What a person uses: the command line (`cli`), the public API (`Client`, `Server`, `run_local`, `open_model`),
configuration, provisioning, the demonstration and its report, experiments.
"""

from importlib import metadata
from typing import Any

__all__ = ["Client", "LocalRun", "Server", "open_model", "run_local"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("secure-codream")
    # Loaded when asked for: the API needs torch, and an aggregator's command line must run without.
    if name in __all__:
        from secure_codream import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
