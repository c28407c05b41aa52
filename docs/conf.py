"""Sphinx configuration of the documentation site; `make docs` builds it, strictly.

The source directory is the checkout: links to code, README.md and CONTRIBUTING.md then work as they do in the
repository. Pages stay plain Markdown; the navigation is here.
"""

import tomllib
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
NAVIGATION = {
    "docs/index": {
        "Guides": ("guides/newcomer", "guides/data-scientist", "guides/operator", "guides/analyst", "guides/rules"),
        "Examples": ("../examples/README", "notebook"),
        "Use": (
            *(
                "commands",
                "wire-contract",
                "mapping",
                "declaring-features",
                "rules",
                "lists",
                "dead-letters",
                "analyst",
                "console",
            ),
            *("replay", "backtest", "backtest-report", "export"),
        ),
        "Operate": (
            *("deployment", "security", "operating", "webhook", "sizing", "snapshots", "protection", "broker"),
            "chaos",
        ),
        "Understand": ("architecture", "models", "features", "invariants", "evaluation", "quality", "benchmarks"),
        "Reference": ("settings", "metrics", "command-options"),
        "Project": ("../README", "../CONTRIBUTING", "decisions/README", "releasing", "../CHANGELOG"),
    },
    "docs/decisions/README": {"Decisions": ("[0-9]*",)},
    "examples/README": {"Examples": ("own-csv", "own-features", "custom-feature", "faust-agent")},
}
"""Pages below a page, by caption. A page that is nowhere fails the build."""

project = "fraud-pipeline"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
language = "en"
default_role = "code"

root_doc = "docs/index"
include_patterns = ["docs/**.md", "examples/**.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "*.egg-info", "agents", "build", "deploy", "dist", "pipeline", "schemas", "tests"]

extensions = ["myst_parser", "sphinx_click", "sphinx_copybutton", "sphinxcontrib.mermaid"]
# Anchors and diagrams as GitHub has them.
myst_heading_anchors = 6
myst_fence_as_directive = ["mermaid"]
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["tables.css"]
# Its index.html leads to that of docs.
html_extra_path = ["site"]


def _append_navigation(app: Sphinx, page: str, content: list[str]) -> None:
    del app
    for caption, pages in NAVIGATION.get(page, {}).items():
        content[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Sphinx) -> None:
    """Add the navigation to the pages as they are read."""
    app.connect("source-read", _append_navigation)
