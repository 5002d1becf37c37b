"""`python -m secure_codream.documents docs`: write them into this folder."""

import sys
from pathlib import Path

from secure_codream.documents import configuration, errors

PAGES = {"configuration.md": configuration.page, "errors.md": errors.page}


def write(folder: Path) -> None:
    """Write every page into a folder."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("python -m secure_codream.documents FOLDER")
    write(Path(sys.argv[1]))
