# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

What is known about model-specific registers: :func:`catalog` and :func:`handled`, and values as
their fields: :func:`decode` and :func:`encode`.
"""

from kvmsr.msr.catalog import X2APIC, Catalog, HandledRange, catalog, handled
from kvmsr.msr.decode import Decoded, FieldValue, decode, encode
from kvmsr.msr.entry import Msr, MsrField

__all__ = (
    "X2APIC",
    "Catalog",
    "Decoded",
    "FieldValue",
    "HandledRange",
    "Msr",
    "MsrField",
    "catalog",
    "decode",
    "encode",
    "handled",
)
