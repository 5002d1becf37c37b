"""The site: `make site` builds these pages with Sphinx, from Markdown as it stands, without a network."""

import json
from importlib import metadata
from typing import Any

from docutils.nodes import document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx

project = "Secure CoDream"
version = release = metadata.version("secure-codream")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Links lead to headings by the names that hosts of repositories give them.
myst_heading_anchors = 4

napoleon_numpy_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = False
html_show_sphinx = False


class NotebookParser(MystParser):
    """A notebook as a page: its prose, its code, and what it printed when it was last run. Nothing is run here."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: document) -> None:
        """Parse it as the Markdown that it is."""
        super().parse("\n\n".join(_markdown(cell) for cell in json.loads(inputstring)["cells"]), document)


def _markdown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    outputs = ("".join(output.get("text") or output["data"]["text/plain"]).rstrip() for output in cell["outputs"])
    return "\n\n".join([f"```python\n{source}\n```", *(f"```text\n{output}\n```" for output in outputs)])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
