"""The documentation site, made by Sphinx from the Markdown in this folder: `nox -s docs`.

The pages are plain Markdown, which GitHub shows as well; what only the site needs is here. Links to files outside of this
folder lead to the repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
REPOSITORY = "https://github.com/hostler-gateway/hostler"

#: The pages, by what a reader wants.
NAVIGATION: Mapping[str, tuple[str, ...]] = {
    "Start": ("quick-start-one-pc", "quick-start-home-lab", "quick-start-team"),
    "Recipes": ("recipes", "clients"),
    "Coming from": ("from-llama-swap", "from-ollama", "from-lm-studio", "from-litellm"),
    "Running it": (
        "windows-and-macos",
        "troubleshooting",
        "faq",
        "upgrading",
        "operations",
        "clusters-behind",
        "cluster",
        "security",
    ),
    "Reference": ("configuration", "engines", "compatibility", "performance", "scaling"),
    "Developing it": ("architecture",),
}

project = "Hostler"
author = "The Hostler authors"
copyright = author  # noqa: A001
version = release = re.findall(r'__version__ = "(.+)"', (ROOT / "src" / "hostler" / "__init__.py").read_text())[0]

extensions = ["myst_parser", "sphinxcontrib.mermaid"]
root_doc = "index"
exclude_patterns = ["tools"]
nitpicky = True

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

html_theme = "furo"
html_title = "Hostler"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
html_copy_source = False


def _toctrees() -> str:
    """The navigation, at the end of the first page and not shown in it."""
    return "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in NAVIGATION.items()
    )


def _outside_link(found: re.Match[str]) -> str:
    """A link to a file of the repository that is no page here, as a link to GitHub."""
    path, mark, anchor = found[1].partition("#")
    target = (DOCS / path).resolve()
    kind = "tree" if target.is_dir() else "blob"
    return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{mark}{anchor})"


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = re.sub(r"\]\((\.\./[^)\s]+)\)", _outside_link, content[0])
    if name == root_doc:
        content[0] += _toctrees()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
