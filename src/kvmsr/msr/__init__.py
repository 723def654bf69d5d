# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

What is known about model-specific registers: :func:`catalog` and :func:`handled`, and values as
their fields: :func:`decode` and :func:`encode`.
"""

from kvmsr.msr.catalog import Catalog, HandledRange, catalog, handled
from kvmsr.msr.decode import Decoded, FieldValue, decode, encode
from kvmsr.msr.entry import Field, Msr

__all__ = (
    "Catalog",
    "Decoded",
    "Field",
    "FieldValue",
    "HandledRange",
    "Msr",
    "catalog",
    "decode",
    "encode",
    "handled",
)
