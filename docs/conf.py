"""Sphinx over this folder: `make docs`. No page loads anything from elsewhere: formulas are text."""

import inspect
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

import sb3_flow

project = "sb3_flow"
author = "the authors of sb3_flow"
version = release = sb3_flow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links like results.md#cost, with GitHub's names of headings
suppress_warnings = ["misc.highlighting_failure"]  # a shell's line that is none of Pygments'

default_role = "code"  # docstrings have single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the source; with them a signature of SACFlow fills a page
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"sb3_flow {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def constructor_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Of `__init__`, where a `__new__` that takes anything hides it."""
    if what != "class" or signature != "(*args, **kwargs)":
        return signature, returns
    own = inspect.signature(obj.__init__)
    without_self = own.replace(parameters=list(own.parameters.values())[1:])
    return stringify_signature(without_self, show_annotation=False, show_return_annotation=False), None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", constructor_signature)
