"""Code that a charter names: run only where a person's own files name it too, and then exactly the bytes they named.

The source is found without importing anything, hashed, compared, and the very bytes that were hashed are run. What that
module imports in turn is found as ever: whoever names a file vouches for what it imports.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from codream_clients.own_parts import OwnPartError, guarded, look_here
from secure_codream.configuration.reading import ConfigError


def source_of(reference: str) -> Path:
    """The file of `module:name`, looked for as `import` does, from the current folder on, without importing.

    Raises:
        ConfigError: no such module, or none that is a plain source file.
    """
    module = reference.partition(":")[0]
    for place in (str(Path.cwd()), *sys.path):
        path = Path(place or ".").joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file():
            return path
    raise ConfigError(
        f"{reference}: found no {module.replace('.', '/')}.py here or on the path; a source file is needed"
    )


def source_digest(reference: str) -> str:
    """SHA-256 of the source of `module:name`, 64 hexadecimal digits; raises as `source_of`."""
    return hashlib.sha256(source_of(reference).read_bytes()).hexdigest()


def load_named(reference: str, *permissions: Mapping[str, str]) -> Any:
    """What `module:name` names, if every one of `permissions` names it with the digest of its source.

    Args:
        reference: as the charter has it.
        permissions: reference -> digest: the charter's `[code]`, and for a client its own `[policy.code]`.

    Raises:
        ConfigError: not permitted, other source than was named, it fails or ends the process, no such name in it, or a
            file of the current folder hides a module that Python or an installed package needs.
    """
    path = source_of(reference)
    source = path.read_bytes()
    found = hashlib.sha256(source).hexdigest()
    for permitted in permissions:
        if reference not in permitted:
            raise ConfigError(
                f"{reference}: found in the charter alone; to run it, read {path} and put "
                f'"{reference}" = "{found}" under [policy.code] of client.toml; '
                f"for `verify`, add --code {reference}={found}"
            )
        if permitted[reference] != found:
            raise ConfigError(
                f"{reference}: found source with digest {found[:16]}… in {path}; "
                f"{permitted[reference][:16]}… is allowed"
            )
    module_name, _, name = reference.partition(":")
    module = ModuleType(module_name)
    module.__file__ = str(path)
    module.__package__ = module_name.rpartition(".")[0]  # so that `from .layers import ...` finds its package
    try:
        look_here()
        # Found by its classes' own look-ups (dataclasses among them); never by whoever imports that name later.
        sys.modules.setdefault(module_name, module)
        with guarded(f"{reference}: running {path}"):
            exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - the digest above is the permission
    except OwnPartError as error:
        raise ConfigError(str(error)) from error
    part = getattr(module, name, None)
    if part is None or not callable(part):
        raise ConfigError(f"{reference}: found no {name!r} that can be called in {path}")
    return part
