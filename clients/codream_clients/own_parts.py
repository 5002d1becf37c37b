"""A user's own code in place of a name: `my_module:build`, `my_package.data:load`.

A reference is a module, a colon and a name in it. The module is imported with the current folder first on the path, as
`python -m` does. THIS RUNS THE MODULE'S CODE with all the rights of the process: references are taken from the
configuration files and the calls of the person who runs the process, never from a message. Whoever is handed a
client's folder by an administrator reads `client.toml` before starting it.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    here = look_here()
    try:
        with guarded(f"{reference}: importing {module_name!r}"):
            module = importlib.import_module(module_name)
    except OwnPartError as error:
        lacking = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if lacking is not None and (module_name == lacking or module_name.startswith(f"{lacking}.")):
            raise OwnPartError(
                f"{reference}: no module {module_name!r} in {here} or among the installed packages; start where it "
                "lies, or install it"
            ) from error
        raise
    part = getattr(module, name, None)
    if part is None:
        names = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise OwnPartError(f"{reference}: {module_name!r} has no {name!r}; found {', '.join(names[:12]) or 'nothing'}")
    if not callable(part):
        raise OwnPartError(f"{reference}: found {type(part).__name__}; something that can be called is needed")
    return part  # type: ignore[no-any-return]


def call_own_part(reference: str, part: Callable[..., Any], *arguments: Any) -> Any:
    """What `part`, loaded as `reference` names it, returns; raises `OwnPartError` if it raises anything."""
    given = ", ".join(repr(argument) for argument in arguments)
    with guarded(f"{reference}({given})"):
        return part(*arguments)


@contextmanager
def guarded(doing: str) -> Iterator[None]:
    """Within, code of the user's own runs.

    Whatever it raises, and its call for the end of the process, is an `OwnPartError` that begins with `doing`.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        left = '; leave out exit() and sys.exit(), or put them under `if __name__ == "__main__":`'
        instead = left if isinstance(error, SystemExit) else ""
        raise OwnPartError(f"{doing} failed: {type(error).__name__}: {error}{instead}") from error


def look_here() -> Path:
    """Modules are looked for in the current folder first, as `python -m` does; that folder.

    Raises `OwnPartError` for a file in it that would be imported in the place of Python's or an installed package's
    module: `random.py` would be what every library imports as `random`.
    """
    folder = Path.cwd()
    for file in sorted(folder.glob("*.py")):
        known = getattr(sys.modules.get(file.stem), "__file__", None) or ""
        installed = "site-packages" in Path(known).parts and folder not in Path(known).parents
        if installed or file.stem in sys.stdlib_module_names - HARMLESS:
            whose = "an installed package's" if installed else "Python's"
            raise OwnPartError(
                f"found {file}, which hides {whose} own module {file.stem!r} from every library; give the file "
                "another name"
            )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    return folder
