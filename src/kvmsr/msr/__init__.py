# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

Facts about model-specific registers. :func:`catalog` has their names and fields, :func:`handled`
those that KVM may handle itself. :func:`decode` and :func:`encode` convert values to fields and
back. :func:`enumerated` has the CPUID bits by which guests decide whether MSRs are there.
"""

from kvmsr.msr.catalog import X2APIC, Catalog, HandledRange, catalog, handled
from kvmsr.msr.cpuid import Enumerated, Feature, enumerated, features, find_feature
from kvmsr.msr.decode import Decoded, FieldValue, decode, differences
from kvmsr.msr.encode import Encoded, encode, encode_with_notes
from kvmsr.msr.entry import Msr, MsrField
from kvmsr.msr.units import Quantity

__all__ = (
    "X2APIC",
    "Catalog",
    "Decoded",
    "Encoded",
    "Enumerated",
    "Feature",
    "FieldValue",
    "HandledRange",
    "Msr",
    "MsrField",
    "Quantity",
    "catalog",
    "decode",
    "differences",
    "encode",
    "encode_with_notes",
    "enumerated",
    "features",
    "find_feature",
    "handled",
)
