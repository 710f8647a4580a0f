"""How the book is built. ``python docs/_ext/build.py`` runs the pages first; Sphinx only reads what they gave."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from fences import EXTENSIONS  # noqa: E402

import ftdocs  # noqa: E402

# The project's address. Where it is empty, links to edit a page or to report a fault are left out.
REPOSITORY_URL = ""

project = "Fine-tuning, verified"
author = "the ftdocs authors"
copyright = "the ftdocs authors, Apache-2.0"
version = release = ftdocs.__version__

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "book",
    "calculator",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb"}
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!ftdocs).*")
]  # other projects' names: their inventories are on the network

myst_enable_extensions = list(EXTENSIONS)
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "jupyter_cache")
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

# Only code is copied: no prompts, no output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

templates_path = ["_templates"] if (HERE / "_templates").is_dir() else []
html_title = project
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search field
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if REPOSITORY_URL:
    html_theme_options |= {
        "repository_url": REPOSITORY_URL,
        "path_to_docs": "docs",
        "use_repository_button": True,
        "use_edit_page_button": True,
        "use_issues_button": True,
    }
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None

autodoc_typehints = "description"
autodoc_member_order = "bysource"

linkcheck_timeout = 20
linkcheck_retries = 2

os.environ.setdefault("FTDOCS_PROFILE", "smoke")  # whatever autodoc imports must not ask the hardware
