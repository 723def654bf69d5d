# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the site; `make docs` runs it by tools/site."""

import hashlib
import sys
from pathlib import Path

import kvmsr

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "kvmsr"
author = "the kvmsr developers"
version = release = kvmsr._version.__version__  # type: ignore[attr-defined]

extensions = ["myst_parser", "sphinx.ext.autodoc", "tools.site.extension"]
exclude_patterns = ["conf.py"]

myst_heading_anchors = 3
myst_links_external_new_tab = False
highlight_language = "none"
default_role = "code"
smartquotes = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"kvmsr {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_domain_indices = False
html_use_index = False
html_theme_options = {"navigation_with_keys": True}
templates_path: list[str] = []

# Pages are read again if what fills them has changed.
_filled_by = [*Path(kvmsr.__file__).parent.rglob("*.py"), *(ROOT / "tools/site").glob("*.py")]
_filled_by += Path(kvmsr.__file__).parent.rglob("*.json")
kvmsr_code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_filled_by))).hexdigest()
