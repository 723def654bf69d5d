# SPDX-License-Identifier: Apache-2.0
"""C-190 to C-212: KVM_GET_MSRS, KVM_SET_MSRS, and the lists of indices."""

import errno

from kvmsr.abi import ioctls, vm
from tests.conformance.code import MARKER, NOP
from tests.conformance.outcome import DONE, INVAL
from tests.conformance.registry import equal, errno_of, holds, item
from tests.conformance.vcpu import msr_table
from tests.conformance.world import X

EFER, APIC_BASE, MCG_CAP, MTRR_CAP = 0xC0000080, 0x1B, 0x179, 0xFE
SYSENTER_CS, TSC = 0x174, 0x10
PLATFORM_INFO, SMI_COUNT, UCODE_REV = 0xCE, 0x34, 0x8B
STALE = 0x5A5A5A5A5A5A5A5A

_LISTS = {
    ioctls.KVM_GET_MSR_INDEX_LIST: "index list",
    ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST: "feature index list",
}


def _list(w, request, room):
    """Do a list ioctl with room for so many; return errno, the count, and the indices."""
    found = vm.msr_list(max(room, 1))
    found.nmsrs = room
    for place in range(max(room, 1)):
        found.indices[place] = 0xDEADBEEF
    error = errno_of(w.kvm.raw_ioctl, request, found)
    return error, found.nmsrs, list(found.indices)


@item("C-190")
def no_entries(w):
    """KVM_GET_MSRS and KVM_SET_MSRS of nothing return 0."""
    cpu = w.cpu()
    equal(cpu.get_all([])[0], 0)
    equal(cpu.set_all([]), 0)


@item("C-191")
def most_entries(w):
    """255 entries are taken; 256 are E2BIG."""
    cpu = w.cpu()
    equal(cpu.get_all([EFER] * 255)[0], 255)
    equal(cpu.set_all([(SYSENTER_CS, n) for n in range(255)]), 255)
    for request in (ioctls.KVM_GET_MSRS, ioctls.KVM_SET_MSRS):
        table = msr_table([(EFER, 0)] * 256)
        equal(errno_of(cpu.vcpu.raw_ioctl, request, table), errno.E2BIG)


@item("C-192")
def bad_pointer(w):
    """A bad pointer is EFAULT."""
    cpu = w.cpu()
    for request in (ioctls.KVM_GET_MSRS, ioctls.KVM_SET_MSRS):
        equal(errno_of(cpu.vcpu.raw_ioctl, request, 0x1000), errno.EFAULT)


@item("C-193")
def get_stops_at_a_failure(w):
    """KVM_GET_MSRS of EFER, X, EFER returns 1, and the third entry keeps the caller's bytes."""
    cpu = w.cpu()
    count, values = cpu.get_all([EFER, X, EFER], fill=STALE)
    equal(count, 1)
    equal((values[0], values[2]), (cpu.get(EFER), STALE))


@item("C-195")
def first_failure_is_no_errno(w):
    """KVM_GET_MSRS that fails at its first entry returns 0."""
    equal(w.cpu().get_all([X, EFER])[0], 0)


@item("C-196")
def set_stops_at_a_failure(w):
    """KVM_SET_MSRS returns how far it came; what comes behind is not set."""
    cpu = w.cpu()
    equal(cpu.set_all([(SYSENTER_CS, 0x10), (X, 1), (SYSENTER_CS, 0x20)]), 1)
    equal(cpu.get(SYSENTER_CS), 0x10)


@item("C-197")
def duplicates_are_in_order(w):
    """The last of several values for one MSR stays."""
    cpu = w.cpu()
    equal(cpu.set_all([(SYSENTER_CS, 0x10), (SYSENTER_CS, 0x20)]), 2)
    equal(cpu.get(SYSENTER_CS), 0x20)


@item("C-199")
def list_tells_its_length(w):
    """KVM_GET_MSR_INDEX_LIST without room is E2BIG, and tells the true count."""
    error, count, _ = _list(w, ioctls.KVM_GET_MSR_INDEX_LIST, 0)
    equal(error, errno.E2BIG)
    equal(count, len(w.kvm.get_msr_index_list()))


@item("C-200")
def list_is_whole_or_not_there(w):
    """With room for one too few it is E2BIG, and no index is written."""
    count = len(w.kvm.get_msr_index_list())
    error, told, indices = _list(w, ioctls.KVM_GET_MSR_INDEX_LIST, count - 1)
    equal((error, told), (errno.E2BIG, count))
    equal(set(indices), {0xDEADBEEF})


@item("C-202")
def feature_list_is_alike(w):
    """KVM_GET_MSR_FEATURE_INDEX_LIST behaves the same; with too much room both tell the count."""
    count = len(w.kvm.get_msr_feature_index_list())
    holds(count, "there is no feature MSR")
    equal(_list(w, ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST, 0)[:2], (errno.E2BIG, count))
    error, told, indices = _list(w, ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST, count - 1)
    equal((error, told), (errno.E2BIG, count))
    holds(set(indices) <= {0xDEADBEEF}, "indices were written")
    for request, name in _LISTS.items():
        error, told, indices = _list(w, request, 500)
        equal(error, 0, name)
        holds(0xDEADBEEF not in indices[:told], name)
        equal(set(indices[told:]), {0xDEADBEEF}, name)


@item("C-203")
def listed_msrs_are_readable(w):
    """The host can read each listed MSR of a vCPU that has no CPUID yet."""
    cpu = w.cpu()
    listed = list(w.kvm.get_msr_index_list())
    for start in range(0, len(listed), 255):
        part = listed[start : start + 255]
        count, _ = cpu.get_all(part)
        holds(count == len(part), f"MSR {part[min(count, len(part) - 1)]:#x} is not readable")


@item("C-204")
def listed_msrs_take_their_value_back(w):
    """The host can write what it has read, but for those that need an in-kernel irqchip."""
    cpu = w.cpu()
    refused = set()
    for index in w.kvm.get_msr_index_list():
        if not cpu.set(index, cpu.get(index)):
            refused.add(index)
    equal({f"{n:#x}" for n in refused}, {f"{n:#x}" for n in w.kernel.unrestorable})


@item("C-206")
def some_are_not_listed(w):
    """EFER, APIC_BASE, MTRRs and MCG_CAP are readable though no list names them."""
    cpu = w.cpu()
    listed = w.kvm.get_msr_index_list()
    for index in (EFER, APIC_BASE, MTRR_CAP, 0x200, 0x2FF, MCG_CAP):
        holds(index not in listed, f"{index:#x} is listed")
        holds(cpu.get(index) is not None, f"{index:#x} is not readable")


def _system_get(w, indices):
    table = msr_table([(index, STALE) for index in indices])
    count = w.kvm.raw_ioctl(ioctls.KVM_GET_MSRS, table)
    return count, [entry.data for entry in table.entries]


@item("C-207")
def system_get_of_features(w):
    """KVM_GET_MSRS on the system fd gives all feature MSRs."""
    features = w.kvm.get_msr_feature_index_list()
    equal(_system_get(w, features)[0], len(features))


@item("C-208")
def system_get_stops(w):
    """It stops at an unknown MSR."""
    features = w.kvm.get_msr_feature_index_list()
    equal(_system_get(w, [features[0], X, features[0]])[0], 1)


@item("C-209")
def system_get_of_no_feature(w):
    """A listed MSR that is no feature reads 0 on newer kernels, and fails on older ones."""
    count, values = _system_get(w, [TSC])
    if w.kernel.system_get_of_listed:
        equal((count, values), (1, [0]))
    else:
        equal(count, 0)


@item("C-210")
def no_system_set(w):
    """There is no KVM_SET_MSRS on the system fd: EINVAL."""
    table = msr_table([(UCODE_REV, 1)])
    equal(errno_of(w.kvm.raw_ioctl, ioctls.KVM_SET_MSRS, table), errno.EINVAL)


@item("C-211")
def features_freeze(w):
    """After the first KVM_RUN a feature MSR keeps its value, but for the microcode revision."""
    cpu = w.cpu()
    before = cpu.get(PLATFORM_INFO)
    cpu.load(NOP + MARKER)
    equal(cpu.finish(), DONE)
    holds(cpu.set(PLATFORM_INFO, before), "the same value is refused")
    changed = cpu.set(PLATFORM_INFO, before ^ 1)
    equal(changed, not w.kernel.freezes_features, "another value is taken")
    holds(cpu.set(UCODE_REV, 0x1234), "the microcode revision is frozen")


@item("C-212")
def hosts_may_more(w):
    """The host writes PLATFORM_INFO, SMI_COUNT and UCODE_REV, which the guest may not, or not for
    good."""
    cpu = w.cpu()
    for index, value in ((PLATFORM_INFO, 0x80000001), (SMI_COUNT, 5), (UCODE_REV, 0x99)):
        holds(cpu.set(index, value), f"{index:#x} is refused")
        equal(cpu.get(index), value)
    for index in (PLATFORM_INFO, SMI_COUNT):
        equal(cpu.write(index, 1), INVAL, f"{index:#x}")
    equal(cpu.write(UCODE_REV, 1), DONE)
    equal(cpu.get(UCODE_REV), 0x99)
