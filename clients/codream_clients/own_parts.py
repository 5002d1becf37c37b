"""A user's own code in place of a name: `my_module:build`, `my_package.data:load`.

A reference is a module, a colon and a name in it. The module is imported with the current folder first on the path, as
`python -m` does. THIS RUNS THE MODULE'S CODE with all the rights of the process: references are taken from the
configuration files and the calls of the person who runs the process, never from a message. Whoever is handed a
client's folder by an administrator reads `client.toml` before starting it.
"""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


HARMLESS = frozenset({"test", "this", "antigravity", "turtle", "turtledemo", "idlelib"})
"""Modules of Python's own that no library imports."""


class OwnPartError(ValueError):
    """A user's own part cannot be loaded, or does not do what is needed; the text says what came instead."""


def is_reference(text: str) -> bool:
    """Whether `text` has the form module:name."""
    return _REFERENCE.fullmatch(text) is not None


def load_own_part(reference: str) -> Callable[..., Any]:
    """The callable that `reference` names; its module is imported, which runs it.

    Raises `OwnPartError` if the text is no reference, a file of the current folder hides a module that Python or an
    installed package needs, the module is not found, fails or ends the process when it is imported, or the name is
    missing or cannot be called.
    """
    if not is_reference(reference):
        raise OwnPartError(f"found {reference!r}; module:name is needed, such as my_module:build")
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    _refuse_hiding(Path(here))
    if here not in sys.path:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise OwnPartError(
                f"{reference}: no module {module_name!r} in {here} or among the installed packages"
            ) from error
        raise OwnPartError(f"{reference}: importing {module_name!r} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise OwnPartError(
            f"{reference}: importing {module_name!r} failed: {type(error).__name__}: {error}{_left(error)}"
        ) from error
    part = getattr(module, name, None)
    if part is None:
        names = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise OwnPartError(f"{reference}: {module_name!r} has no {name!r}; found {', '.join(names[:12]) or 'nothing'}")
    if not callable(part):
        raise OwnPartError(f"{reference}: found {type(part).__name__}; something that can be called is needed")
    return part  # type: ignore[no-any-return]


def call_own_part(reference: str, *arguments: Any) -> Any:
    """What the part that `reference` names returns; raises `OwnPartError` if it raises anything."""
    part = load_own_part(reference)
    try:
        return part(*arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(repr(argument) for argument in arguments)
        raise OwnPartError(f"{reference}({given}) failed: {type(error).__name__}: {error}{_left(error)}") from error


def _left(error: BaseException) -> str:
    """What to write where own code has called for the end of the process."""
    if not isinstance(error, SystemExit):
        return ""
    return '; leave out exit() and sys.exit(), or put them under `if __name__ == "__main__":`'


def _refuse_hiding(folder: Path) -> None:
    """Raise `OwnPartError` for a file that would be imported in the place of Python's or an installed package's module.

    The folder is first on the path, so `random.py` in it would be what every library imports as `random`.
    """
    for file in sorted(folder.glob("*.py")):
        known = getattr(sys.modules.get(file.stem), "__file__", None) or ""
        installed = "site-packages" in Path(known).parts and folder not in Path(known).parents
        if installed or file.stem in sys.stdlib_module_names - HARMLESS:
            whose = "an installed package's" if installed else "Python's"
            raise OwnPartError(
                f"found {file}, which hides {whose} own module {file.stem!r} from every library; give the file "
                "another name"
            )
