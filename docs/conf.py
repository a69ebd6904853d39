"""Sphinx over this folder: `make docs`. No page loads anything from elsewhere: formulas are text."""

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

html_theme = "furo"
html_title = f"sb3_flow {version}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []
