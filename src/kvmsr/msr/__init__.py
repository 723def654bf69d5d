# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

Facts about model-specific registers. :func:`catalog` has their names and fields, :func:`handled`
those that KVM may handle itself. :func:`decode` and :func:`encode` convert values to fields and
back.
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
