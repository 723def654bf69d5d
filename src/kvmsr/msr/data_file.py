# SPDX-License-Identifier: Apache-2.0
"""
Data files
----------

The facts that come with kvmsr lie in ``data``.
"""

import pkgutil

__all__ = ("data_file",)


def data_file(name: str) -> bytes:
    """Return the contents of a data file. (Importing importlib.resources would be slow.)"""
    data = pkgutil.get_data("kvmsr.msr", f"data/{name}")
    assert data is not None
    return data
