"""Settings of the documentation; `make docs` builds it without a network."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import stpred  # noqa: E402

metadata = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
repository_url = metadata["urls"]["Source"]

project = "stpred"
author = "stpred developers"
copyright = "2026, stpred developers"
release = version = stpred.__version__

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "_sphinx.commands",
    "_sphinx.notebooks",
    "_sphinx.public_names",
    "_sphinx.repository_links",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "_sphinx", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# Pages and notebooks. Notebooks are shown as they are stored; `make notebooks` executes them.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Reference, from the docstrings.
autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # prose, where others have a type on a line of its own

# Names of stpred must resolve; those of other packages are links on the published pages only.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!stpred\.).*"),
    # Types of parameters and bases of classes that are not public stay without a link.
    ("py:class", r"stpred\.(_core|links|models\.(parts|pretrained|xfuse)|\w+\._).*"),
]
intersphinx_mapping = {}
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = "stpred"
html_static_path = ["_static"]
html_css_files = ["stpred.css"]
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_navbar_depth": 1,
    "max_navbar_depth": 2,  # the pages of single functions are listed on their subject's page; 200 entries cost minutes
    "collapse_navbar": True,
    "show_toc_level": 2,
    "repository_url": repository_url,
    "use_repository_button": True,
    "path_to_docs": "docs",
}
