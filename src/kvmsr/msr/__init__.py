# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

Facts about model-specific registers. :func:`catalog` has their names and fields, :func:`search`
finds them by words, :func:`handled`
those that KVM may handle itself, and :func:`handling` how it does. :func:`find_cpu` has the CPU for
which an index is to be explained. :func:`decode` and :func:`encode` convert values to fields and
back. :func:`enumerated` has the CPUID bits by which guests decide whether MSRs are there.
"""

from kvmsr.msr.catalog import X2APIC, Catalog, catalog
from kvmsr.msr.cpu import Cpu, cpu_names, find_cpu
from kvmsr.msr.cpuid import Enumerated, Feature, enumerated, features, find_feature
from kvmsr.msr.decode import Decoded, FieldValue, decode, differences
from kvmsr.msr.encode import Encoded, encode, encode_with_notes
from kvmsr.msr.entry import Msr, MsrField
from kvmsr.msr.handling import HandledRange, Handling, handled, handling
from kvmsr.msr.search import search
from kvmsr.msr.units import Quantity

__all__ = (
    "X2APIC",
    "Catalog",
    "Cpu",
    "Decoded",
    "Encoded",
    "Enumerated",
    "Feature",
    "FieldValue",
    "HandledRange",
    "Handling",
    "Msr",
    "MsrField",
    "Quantity",
    "catalog",
    "cpu_names",
    "decode",
    "differences",
    "encode",
    "encode_with_notes",
    "enumerated",
    "features",
    "find_cpu",
    "find_feature",
    "handled",
    "handling",
    "search",
)
