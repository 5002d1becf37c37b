"""What a cell's rows follow from beside its settings: this program's code, own code, images in files, libraries.

All of it is part of the cell's digest (`grid`), so that rows of other code or images are never taken for these; a
record keeps it, so that what differs can be said in words. Three things are not seen: what own code imports in turn,
what an own function of images reads, and the files of a known set, which are taken for what its name says.

Modules are loaded and images read at any time of a process, so what is there is asked for before a cell and after it.
Whoever has loaded code whose files have changed has no one digest of it, but all that it has seen: no other's equals
that, and nothing that it computes is taken for rows of either.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from codream_clients.data.sources import kind_of
from codream_clients.own_parts import OwnPartError, guarded, is_reference, look_here
from secure_codream.configuration.images import forget_what_was_read
from secure_codream.configuration.reading import ConfigError
from secure_codream.reports.versions import versions_of

CODE, IMAGES = "the code of Secure CoDream", "the images"
LIBRARIES = ("torch", "numpy", "scipy", "opacus", "scikit-learn", "pillow")
"""Those that decide rows; scikit-learn ships digits and the photographs of the start `photos`, Pillow decodes them."""
ROOMS = (
    "codream_protocols",
    "codream_clients",
    "codream_server",
    "secure_codream.configuration",
    "secure_codream.simulation",
    "secure_codream.experiments",
)
"""Whose code computes rows."""
SHOWING = frozenset(
    {"compare", "comparison_report", "estimates", "event_files", "plots", "progress", "results"},
)
"""Files of this room that only show what records say: a report may change, and cells stay as they are."""


def program() -> dict[str, str]:
    """What every cell follows from: the digest of this program's code as loaded, and the versions of libraries."""
    return {CODE: _code_digest(), **versions_of(*LIBRARIES, python=False)}


def code_files() -> Iterator[tuple[str, Path]]:
    """(name, file) of each source file that computes rows."""
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        assert spec is not None and spec.origin is not None  # noqa: S101 - this program's own
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            if not (room == __package__ and file.parent == folder and file.stem in SHOWING):
                yield f"{room}/{file.relative_to(folder).as_posix()}", file


def _code_digest() -> str:
    return _digest_with(frozenset(name for name in sys.modules if name.startswith(ROOMS)))


@lru_cache(maxsize=1)  # as long as no module is loaded, it does not matter what becomes of the files
def _digest_with(loaded: frozenset[str]) -> str:
    _CODE_SEEN[_digest(code_files())] = None
    return _THEN.join(_CODE_SEEN)


_THEN = " then "
_CODE_SEEN: dict[str, None] = {}
_OWN_CODE_SEEN: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()
_IMAGES_SEEN: dict[str, str] = {}


def own_code(names: Iterable[str]) -> dict[str, str]:
    """What each module that `names` refer to as module:name is -> the digest of its file; other names are passed over.

    THIS LOADS THE MODULES, so that a digest is of what runs: where a file has changed since, both digests are told.

    Raises:
        ConfigError: no such module, one that fails, or none whose file can be read.
    """
    modules = sorted({name.partition(":")[0] for name in names if is_reference(name)})
    return {f"own code in {module}": _digest_of_module(module) for module in modules}


def images_in(source: str) -> dict[str, str]:
    """The digest of all images where `source` is a file or a folder; of anything else nothing.

    Of a folder every file counts that is not hidden, by its path below the folder; links are followed. What was read of
    other images before is forgotten.

    Raises:
        ConfigError: they cannot be read.
    """
    if kind_of(source) not in ("npz", "folder"):
        return {}
    path = Path(source).expanduser()
    try:
        found = _digest([("", path)] if path.is_file() else sorted(_files_below(path)))
    except OSError as error:
        raise ConfigError(f"data.source: {path} cannot be read ({error.strerror or error})") from error
    if _IMAGES_SEEN.get(source, found) != found:
        forget_what_was_read()
    _IMAGES_SEEN[source] = found
    return {IMAGES: found}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, in words: a library with both versions, all else by its name."""
    differing = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    return [
        f"{name} ({then.get(name, 'none')} then, {now.get(name, 'none')} now)" if name in LIBRARIES else name
        for name in differing
    ]


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    whole = hashlib.sha256()
    for name, file in files:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{found} {name}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _digest_of_module(module: str) -> str:
    loaded = _loaded(module)
    file = getattr(loaded, "__file__", None)
    if file is None:
        raise ConfigError(f"{module}: found no file of it here or among the installed packages; own code needs one")
    try:
        found = _digest([(module, Path(file))])
    except OSError as error:
        raise ConfigError(f"{module}: {file} cannot be read ({error.strerror or error})") from error
    seen = _OWN_CODE_SEEN.setdefault(loaded, found)
    return found if found == seen else f"{seen}{_THEN}{found}"


def _loaded(module: str) -> ModuleType:
    try:
        look_here()
        with guarded(f"importing {module!r}"):
            return importlib.import_module(module)
    except OwnPartError as error:
        raise ConfigError(f"{module}: {error}") from error


def _files_below(root: Path) -> Iterator[tuple[str, Path]]:
    waiting, reached = [root], set()
    while waiting:
        folder = waiting.pop()
        if (real := folder.resolve()) in reached:
            continue
        reached.add(real)
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append(entry)
            elif entry.is_file():
                yield entry.relative_to(root).as_posix(), entry
