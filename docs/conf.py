"""Settings of the documentation site: `make docs` builds it, offline and strictly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# The tutorials: their tensors are small, and they find the program beside the interpreter.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["COLUMNS"] = "100"
os.environ["IPYTHONDIR"] = str(Path(__file__).parent / "_ext" / "ipython")
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1] / "examples"), os.environ.get("PYTHONPATH", "")])

from epns_pyro import __version__

project = "epns-pyro"
author = "The epns-pyro developers"
version = release = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "settings_table",
    "plain_docstrings",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures are of libraries that have sites of their own
smartquotes = False  # quotes are mostly those of code
default_role = "code"  # a docstring says `name` for code

# -- pages and tutorials -------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars
nb_number_source_lines = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- reference -----------------------------------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"exclude-members": "model_config, model_post_init", "show-inheritance": False}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_param = False  # types are shapes, such as (batch, *site, channel): text, not names of classes
napoleon_use_rtype = False
napoleon_use_ivar = False

# -- look ----------------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "epns-pyro"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b6cb5", "color-brand-content": "#0b6cb5"},
    "dark_css_variables": {"color-brand-primary": "#5cb3f4", "color-brand-content": "#5cb3f4"},
}
