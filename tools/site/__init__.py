# SPDX-License-Identifier: Apache-2.0
"""
The documentation as a site: `make docs`, or `python -m tools.site build/site`.

Sphinx, because the docstrings are in its form, and because its search is a script that is loaded
like any other: it works from a folder, without a server. myst-parser reads the Markdown that GitHub
shows, and furo is light and dark, wide and narrow, without fonts or scripts from elsewhere.
"""
