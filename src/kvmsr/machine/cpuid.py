# SPDX-License-Identifier: Apache-2.0
"""
The guest's CPUID
-----------------

What KVM supports, adapted for each vCPU: its APIC ID and the number of vCPUs; with the features
whose MSRs the policy answers, so that the guest looks for them, and without those that the user
hides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvmsr.abi import CPUID_FLAG_SIGNIFCANT_INDEX, Cap
from kvmsr.errors import UsageError
from kvmsr.kvm import CpuidEntry, CpuidTable, Kvm, Vcpu
from kvmsr.machine.arguments import refuse_unless
from kvmsr.msr import Enumerated, Feature, enumerated, features, find_feature
from kvmsr.policy import Policy
from kvmsr.policy.enumeration import enumerated_by

__all__ = ("Choice", "Features", "guest_cpuid", "has", "set_up_features", "to_features")

_TSC_DEADLINE = 1 << 24
_MCE_BANKS = 10
_MCE_FEATURES = 1 << 8 | 1 << 24  # MCG_CTL, and software error recovery
_SMT, _CORE = 1, 2
_TOPOLOGY = (0xB, 0x1F)
_EXTENDED = 0x8000_0000

Features = Iterable[Feature | str]
"""CPUID features, or their names."""


def to_features(values: Features, name: str) -> list[Feature]:
    """
    Return the features in *values*, some of them by name.

    :param name: what messages call the list.
    :raises UsageError: if one is neither a feature nor the name of one.
    """
    several = isinstance(values, Iterable) and not isinstance(values, str)
    refuse_unless(several, name, values, "give CPUID features, as a list")
    found = []
    for number, value in enumerate(values):
        feature = find_feature(value) if isinstance(value, str) else value
        known = isinstance(feature, Feature)
        refuse_unless(known, f"{name}[{number}]", value, "give a Feature, or a name")
        found.append(feature)
    return found


def has(table: CpuidTable, feature: Feature) -> bool:
    """Return whether *table* has *feature*."""
    entry = table.find(feature.function, feature.index)
    return entry is not None and bool(getattr(entry, feature.register) >> feature.bit & 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """
    Which features a guest sees beyond what KVM supports, and which it does not see.

    :ivar added: features whose MSRs the policy answers, and that KVM does not have.
    :ivar hidden: features to leave out.
    """

    added: tuple[Enumerated, ...] = ()
    hidden: tuple[Feature, ...] = ()

    @classmethod
    def make(
        cls,
        policy: Policy,
        supported: CpuidTable,
        shown: Iterable[Feature] = (),
        hidden: Iterable[Feature] = (),
        *,
        tsc_deadline: bool = False,
    ) -> "Choice":
        """
        Return the choice for a guest under *policy*.

        :param supported: the result of KVM_GET_SUPPORTED_CPUID.
        :param shown: features that the guest has to see.
        :param hidden: features that it does not see, nor those that need them.
        :raises UsageError: if neither KVM nor the policy has one that is to be shown, and what can
            be had; or if one is also to be hidden.
        """
        known = features()
        hidden = tuple(hidden)
        able = [
            one
            for one in enumerated_by(policy)
            if one.is_of(supported.vendor) and not has(supported, one.feature)
        ]
        for feature in shown:
            if feature in hidden:
                raise UsageError(f"the CPUID feature {_name(feature)} is both required and hidden")
            deadline = feature == Feature(1, 0, "ecx", _TSC_DEADLINE.bit_length() - 1)
            if not (
                has(supported, feature)
                or (deadline and tsc_deadline)
                or any(one.feature == feature for one in able)
            ):
                raise UsageError(_not_to_be_had(feature, able))
        added = [
            one for one in able if one.feature not in hidden and known.get(one.needs) not in hidden
        ]
        return cls(tuple(added), hidden)

    @property
    def notes(self) -> list[str]:
        """Return what the user should know about it, as lines."""
        if not self.added:
            return []
        names = ", ".join(one.name for one in self.added)
        return [
            f"CPUID shows {names}, because the policy answers their MSRs (--cpu-feature -NAME"
            " hides one)"
        ]


_AS_KVM = Choice()


def _name(feature: Feature) -> str:
    name = next((name for name, known in features().items() if known == feature), "")
    return f"{name} ({feature})"


def _not_to_be_had(feature: Feature, able: Iterable[Enumerated]) -> str:
    text = f"neither this KVM nor the policy has the CPUID feature {_name(feature)}"
    for one in enumerated():
        if one.feature == feature:
            text = f"neither this KVM nor the policy has the CPUID feature {one}"
            text += f"; it comes with rules that answer {one.msr_names}"
    can = ", ".join(one.name for one in able) or "nothing"
    return f"{text}; to be had beyond what KVM shows: {can}"


def set_up_features(
    kvm: Kvm,
    vcpus: Sequence[Vcpu],
    policy: Policy,
    shown: Features,
    hidden: Features,
) -> list[str]:
    """
    Give each vCPU its CPUID and its MCE banks, and return what the user should know, as lines.

    The arguments and errors are those of :meth:`Choice.make`, which see.

    :raises UsageError: also if an argument is no list of features.
    """
    wanted, unwanted = to_features(shown, "shown"), to_features(hidden, "hidden")
    supported = kvm.get_supported_cpuid()
    deadline = bool(kvm.check_extension(Cap.TSC_DEADLINE_TIMER))
    choice = Choice.make(policy, supported, wanted, unwanted, tsc_deadline=deadline)
    mcg_cap = _MCE_BANKS | kvm.get_mce_cap_supported() & _MCE_FEATURES
    for vcpu in vcpus:
        vcpu.set_cpuid2(guest_cpuid(supported, vcpu.id, len(vcpus), choice, tsc_deadline=deadline))
        vcpu.setup_mce(mcg_cap)
    return choice.notes


def guest_cpuid(
    supported: CpuidTable,
    vcpu_id: int,
    cpus: int,
    choice: Choice = _AS_KVM,
    *,
    tsc_deadline: bool = False,
) -> CpuidTable:
    """
    Return the CPUID of vCPU *vcpu_id*. Each vCPU is a core, and all are in one package.

    :param supported: the result of KVM_GET_SUPPORTED_CPUID.
    :param cpus: the number of vCPUs.
    :param choice: features to add, and to leave out.
    :param tsc_deadline: whether the local APIC's timer has a deadline mode, which KVM reports by a
        capability and not in *supported*.
    """
    supported = _with_leaves(supported, (one.feature for one in choice.added))
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
        for one in choice.added:
            entry = _set(entry, one.feature, 1)
        for feature in choice.hidden:
            entry = _set(entry, feature, 0)
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


def _with_leaves(table: CpuidTable, wanted: Iterable[Feature]) -> CpuidTable:
    """Return *table* with empty leaves where it lacks those of *wanted*, and their number."""
    entries = {(entry.function, entry.index): entry for entry in table}
    for feature in wanted:
        if table.find(feature.function, feature.index) is None:
            flags = CPUID_FLAG_SIGNIFCANT_INDEX if feature.index else 0
            key = feature.function, feature.index
            entries[key] = CpuidEntry(*key, flags, 0, 0, 0, 0)
        first = entries.get((feature.function & _EXTENDED, 0))
        if first is not None and first.eax < feature.function:
            entries[first.function, 0] = replace(first, eax=feature.function)
    return CpuidTable(entries.values())


def _set(entry: CpuidEntry, feature: Feature, bit: int) -> CpuidEntry:
    if entry.function != feature.function:
        return entry
    if entry.has_index and entry.index != feature.index:
        return entry
    value = getattr(entry, feature.register) & ~(1 << feature.bit) | bit << feature.bit
    return replace(entry, **{feature.register: value})
