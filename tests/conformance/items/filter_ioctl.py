# SPDX-License-Identifier: Apache-2.0
"""C-140 to C-159: what KVM_X86_SET_MSR_FILTER takes."""

import ctypes
import errno
import mmap

from kvmsr.abi import ioctls, vm
from tests.conformance.outcome import FILTER, UNKNOWN
from tests.conformance.registry import equal, errno_of, item
from tests.conformance.world import X, deny, rule, set_filter

ALLOW, DENY = 0, 1
BOTH = 3
NOTHING = bytes(8)
COMPAT_SIZE = 260
COMPAT_NUMBER = ioctls.KVM_X86_SET_MSR_FILTER & ~(0x3FFF << 16) | COMPAT_SIZE << 16
PAGE = mmap.PAGESIZE


@item("C-140", "filter")
def null_pointer(w):
    """A NULL pointer is EFAULT."""
    machine = w.vm()
    equal(errno_of(machine.raw_ioctl, ioctls.KVM_X86_SET_MSR_FILTER, 0), errno.EFAULT)


@item("C-141", "filter")
def no_ranges(w):
    """No ranges and DEFAULT_ALLOW is accepted."""
    equal(set_filter(w.vm(), ALLOW), 0)


@item("C-142", "filter")
def deny_without_ranges(w):
    """DEFAULT_DENY without ranges is EINVAL."""
    equal(set_filter(w.vm(), DENY), errno.EINVAL)


@item("C-143", "filter")
def unknown_flags(w):
    """Flags 2, and flags 3 with a valid range, are EINVAL."""
    machine = w.vm()
    equal(set_filter(machine, 2), errno.EINVAL)
    equal(set_filter(machine, 3, (BOTH, 1, X, NOTHING)), errno.EINVAL)


@item("C-144", "filter")
def range_without_flags(w):
    """A range of one MSR with flags 0 is EINVAL."""
    equal(set_filter(w.vm(), ALLOW, (0, 1, X, NOTHING)), errno.EINVAL)


@item("C-145", "filter")
def unknown_range_flags(w):
    """Range flags 4 and 7 are EINVAL; an empty range's flags do not count."""
    machine = w.vm()
    for flags in (4, 7):
        equal(set_filter(machine, ALLOW, (flags, 1, X, NOTHING)), errno.EINVAL, f"flags {flags}")
    equal(set_filter(machine, ALLOW, (7, 0, X, 0), (BOTH, 1, X, NOTHING)), 0)


@item("C-146", "filter")
def largest_range(w):
    """A range of 0x3000 MSRs is accepted, one of 0x3001 is EINVAL."""
    machine = w.vm()
    equal(set_filter(machine, ALLOW, (BOTH, 0x3000, 0, NOTHING)), 0)
    equal(set_filter(machine, ALLOW, (BOTH, 0x3001, 0, NOTHING)), errno.EINVAL)
    equal(set_filter(machine, ALLOW, (BOTH, 0xFFFFFFFF, 0, NOTHING)), errno.EINVAL)


@item("C-148", "filter")
def null_bitmap(w):
    """A bitmap at address 0 is EFAULT."""
    equal(set_filter(w.vm(), ALLOW, (BOTH, 1, X, 0)), errno.EFAULT)


@item("C-150", "filter")
def sixteen_ranges(w):
    """Sixteen ranges are accepted, and the last one counts."""
    cpu = w.cpu()
    equal(set_filter(cpu.vm, ALLOW, *((BOTH, 1, X + n, NOTHING) for n in range(16))), 0)
    equal(cpu.read(X + 15), FILTER)
    equal(cpu.read(X + 16), UNKNOWN)


@item("C-151", "filter")
def bitmap_is_read_in_words(w):
    """The bitmap is read in units of eight bytes: one readable byte is EFAULT, eight are enough."""
    machine = w.vm()
    with mmap.mmap(-1, 2 * PAGE) as pages:
        pin = ctypes.c_char.from_buffer(pages)
        start = ctypes.addressof(pin)
        guard = ctypes.CDLL(None, use_errno=True).mprotect
        guard.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        equal(guard(start + PAGE, PAGE, 0), 0, "mprotect")
        end = start + PAGE
        equal(set_filter(machine, ALLOW, (BOTH, 1, X, end - 1)), errno.EFAULT)
        equal(set_filter(machine, ALLOW, (BOTH, 1, X, end - 8)), 0)
        equal(set_filter(machine, ALLOW, (BOTH, 65, X, end - 8)), errno.EFAULT)
        equal(set_filter(machine, ALLOW, (BOTH, 64, X, end - 8)), 0)
        del pin


@item("C-154", "filter")
def failure_keeps_the_filter(w):
    """A failing call leaves the former filter in force."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(X))
    equal(set_filter(cpu.vm, 2), errno.EINVAL)
    equal(set_filter(cpu.vm, ALLOW, (BOTH, 1, X + 1, NOTHING), (BOTH, 1, X, 0)), errno.EFAULT)
    equal(cpu.read(X), FILTER)
    equal(cpu.read(X + 1), UNKNOWN)


@item("C-155", "filter")
def filters_replace_each_other(w):
    """A successful call replaces the whole former filter."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter([rule(X + 2, 1, allowed=1)], default_deny=True)
    equal(cpu.read(X), FILTER)
    cpu.vm.set_msr_filter(deny(X + 1))
    equal(cpu.read(X), UNKNOWN)
    equal(cpu.read(X + 1), FILTER)
    cpu.vm.set_msr_filter()
    equal(cpu.read(X + 1), UNKNOWN)


@item("C-156", "filter")
def bitmap_is_copied(w):
    """Editing the bitmap after the call has no effect."""
    cpu = w.cpu()
    bitmap = ctypes.create_string_buffer(8)
    equal(set_filter(cpu.vm, ALLOW, (BOTH, 1, X, ctypes.addressof(bitmap))), 0)
    bitmap[0] = b"\xff"
    equal(cpu.read(X), FILTER)


@item("C-157", "filter")
def wrong_fd(w):
    """The filter ioctl on a vCPU fd or on the system fd is EINVAL."""
    cpu = w.cpu()
    for handle in (cpu.vcpu, w.kvm):
        equal(
            errno_of(handle.raw_ioctl, ioctls.KVM_X86_SET_MSR_FILTER, vm.MsrFilter()),
            errno.EINVAL,
            type(handle).__name__,
        )


@item("C-159", "filter")
def compat_layout(w):
    """The number of the 32-bit layout is no ioctl of a 64-bit process: ENOTTY, and no effect."""
    cpu = w.cpu()
    cpu.vm.set_msr_filter(deny(X))
    request = ctypes.create_string_buffer(COMPAT_SIZE)
    equal(errno_of(cpu.vm.raw_ioctl, COMPAT_NUMBER, request), errno.ENOTTY)
    equal(cpu.read(X), FILTER)
