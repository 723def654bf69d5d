# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: `make docs`, or `python -m tools.site build/site`."""
