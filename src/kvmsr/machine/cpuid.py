# SPDX-License-Identifier: Apache-2.0
"""
The guest's CPUID
-----------------

What KVM supports, adapted for each vCPU: its APIC ID, the number of vCPUs, and without the features
that the user hides.
"""

import difflib
import functools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX, Cap
from kvmsr.errors import UsageError
from kvmsr.kvm import CpuidEntry, CpuidTable, Kvm, Vcpu
from kvmsr.machine.arguments import refuse_unless
from kvmsr.text import shown

__all__ = ("Feature", "features", "find_feature", "guest_cpuid", "set_up_features", "to_features")

_TSC_DEADLINE = 1 << 24
_MCE_BANKS = 10
_MCE_FEATURES = 1 << 8 | 1 << 24  # MCG_CTL, and software error recovery
_SMT, _CORE = 1, 2
_TOPOLOGY = (0xB, 0x1F)


@dataclass(frozen=True, slots=True)
class Feature:
    """A CPUID bit: leaf *function*, subleaf *index*, *register* (``eax`` to ``edx``), *bit*."""

    function: int
    index: int
    register: str
    bit: int


@functools.cache
def features() -> dict[str, Feature]:
    """Return the named features."""
    text = resources.files("kvmsr.machine").joinpath("cpu_features.toml").read_text("utf-8")
    found = {}
    for entry in tomllib.loads(text)["register"]:
        for bit, names in enumerate(entry["bits"].split()):
            for name in names.split("|"):
                if name != "_":
                    found[name] = Feature(
                        entry["function"], entry.get("index", 0), entry["register"], bit
                    )
    return found


def find_feature(name: str) -> Feature:
    """
    Return the feature called *name*, such as ``x2apic`` or ``sse4_2``; "-" may stand for "_".

    :raises UsageError: if there is none; names those that look like it.
    """
    known = features()
    feature = known.get(name) or known.get(name.replace("-", "_"))
    if feature is None:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"no CPUID feature is called {shown(name)}{hint}")
    return feature


def to_features(values: Iterable[Feature | str]) -> list[Feature]:
    """
    Return the features in *values*, some of them by name.

    :raises UsageError: if one is neither a feature nor the name of one.
    """
    several = isinstance(values, Iterable) and not isinstance(values, str)
    refuse_unless(several, "hidden", values, "give CPUID features, as a list")
    found = []
    for number, value in enumerate(values):
        feature = find_feature(value) if isinstance(value, str) else value
        known = isinstance(feature, Feature)
        refuse_unless(known, f"hidden[{number}]", value, "give a Feature, or a name")
        found.append(feature)
    return found


def set_up_features(kvm: Kvm, vcpus: Sequence[Vcpu], hidden: Iterable[Feature]) -> None:
    """Give each vCPU its CPUID, without features that are to be *hidden*, and its MCE banks."""
    supported = kvm.get_supported_cpuid()
    deadline = bool(kvm.check_extension(Cap.TSC_DEADLINE_TIMER))
    mcg_cap = _MCE_BANKS | kvm.get_mce_cap_supported() & _MCE_FEATURES
    hidden = list(hidden)
    for vcpu in vcpus:
        table = guest_cpuid(supported, vcpu.id, len(vcpus), hidden, tsc_deadline=deadline)
        vcpu.set_cpuid2(table)
        vcpu.setup_mce(mcg_cap)


def guest_cpuid(
    supported: CpuidTable,
    vcpu_id: int,
    cpus: int,
    hidden: Iterable[Feature] = (),
    *,
    tsc_deadline: bool = False,
) -> CpuidTable:
    """
    Return the CPUID of vCPU *vcpu_id*. Each vCPU is a core, and all are in one package.

    :param supported: the result of KVM_GET_SUPPORTED_CPUID.
    :param cpus: the number of vCPUs.
    :param hidden: features to leave out.
    :param tsc_deadline: whether the local APIC's timer has a deadline mode, which KVM reports by a
        capability and not in *supported*.
    """
    hidden = list(hidden)
    shift = (cpus - 1).bit_length()

    def change(entry: CpuidEntry) -> CpuidEntry:
        if entry.function == 1:
            ebx = entry.ebx & 0x0000FFFF | min(cpus, 255) << 16 | (vcpu_id & 0xFF) << 24
            ecx = entry.ecx | (_TSC_DEADLINE if tsc_deadline else 0)
            many = 1 << 28  # HTT: EBX has a valid number of logical processors
            edx = entry.edx | many if cpus > 1 else entry.edx & ~many
            entry = replace(entry, ebx=ebx, ecx=ecx, edx=edx)
        elif entry.function == 0x80000008:
            entry = replace(entry, ecx=(shift << 12) | (cpus - 1) & 0xFF)
        elif entry.function == 0x8000001E:
            entry = replace(entry, eax=vcpu_id, ebx=vcpu_id & 0xFF, ecx=0)
        for feature in hidden:
            entry = _without(entry, feature)
        return entry

    # KVM returns the host's topology leaves, and some KVMs only their first level.
    ours = [
        CpuidEntry(function, index, CPUID_FLAG_SIGNIFCANT_INDEX, *_level(index, cpus), vcpu_id)
        for function in _TOPOLOGY
        if supported.find(function) is not None
        for index in range(3)
    ]
    rest = [change(entry) for entry in supported if entry.function not in _TOPOLOGY]
    return CpuidTable(sorted((*rest, *ours), key=lambda entry: (entry.function, entry.index)))


def _level(index: int, cpus: int) -> tuple[int, int, int]:
    """Return EAX, EBX and ECX of topology level *index*: thread, core, none (SDM, leaf 0xB)."""
    if index == 0:
        return 0, 1, _SMT << 8
    if index == 1:
        return (cpus - 1).bit_length(), cpus, _CORE << 8 | 1
    return 0, 0, index


def _without(entry: CpuidEntry, feature: Feature) -> CpuidEntry:
    if entry.function != feature.function:
        return entry
    if entry.has_index and entry.index != feature.index:
        return entry
    value = getattr(entry, feature.register) & ~(1 << feature.bit)
    return replace(entry, **{feature.register: value})
