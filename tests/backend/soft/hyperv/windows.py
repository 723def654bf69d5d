"""A guest whose CPUID says Hyper-V."""

from kvmsr.abi import Cap, cpu, ioctls
from kvmsr.kvm import CpuidEntry, CpuidTable
from tests.conformance import code

OS_ID, HYPERCALL, VP_INDEX, RESET, RUNTIME = (
    0x40000000,
    0x40000001,
    0x40000002,
    0x40000003,
    0x40000010,
)
REF_COUNT, REFERENCE_TSC, TSC_FREQUENCY = 0x40000020, 0x40000021, 0x40000022
EOI, ICR, TPR, VP_ASSIST = 0x40000070, 0x40000071, 0x40000072, 0x40000073
SCONTROL, SIEFP, SIMP, EOM, SINT2 = 0x40000080, 0x40000082, 0x40000083, 0x40000084, 0x40000092
STIMER0_CONFIG, STIMER0_COUNT = 0x400000B0, 0x400000B1
CRASH_P0, CRASH_CTL, REENLIGHTENMENT, EMULATION = 0x40000100, 0x40000105, 0x40000106, 0x40000107
SYNDBG_CONTROL, SYNDBG_STATUS, SYNDBG_OPTIONS = 0x400000F1, 0x400000F2, 0x400000FF
TSC_INVARIANT = 0x40000118
LINUX = 0x8100 << 48

FEATURES, ENLIGHTENMENTS, DEBUGGER = 0x40000003, 0x40000004, 0x40000082
VMMCALL, VMCALL = b"\x0f\x01\xd9", b"\x0f\x01\xc1"
PAGE = 0xB000  # free


def supported(fd, room=10):
    """Do KVM_GET_SUPPORTED_HV_CPUID on a handle; return the leaves by number."""
    table = cpu.cpuid2(room)
    table.nent = room
    fd.raw_ioctl(ioctls.KVM_GET_SUPPORTED_HV_CPUID, table)
    return {e.function: (e.eax, e.ebx, e.ecx, e.edx) for e in table.entries[: table.nent]}


def cpuid(kvm, without=(), more=None):
    """Return a guest's CPUID with Hyper-V, less some leaves, and with others instead."""
    leaves = supported(kvm.kvm)
    leaves |= dict.fromkeys(without, (0, 0, 0, 0)) | (more or {})
    own = [e for e in kvm.cpuid if not 0x40000000 <= e.function < 0x40000100]
    return CpuidTable([*own, *(CpuidEntry(leaf, 0, 0, *regs) for leaf, regs in leaves.items())])


def guest(kvm, mode="long", **options):
    """Return a vCPU of such a guest, with a local APIC in the kernel."""
    options = {"irqchip": True, "cpuid": cpuid(kvm)} | options
    return kvm.cpu(mode, **options)


def enforce(made):
    made.vcpu.enable_cap(Cap.HYPERV_ENFORCE_CPUID, 1)


def call(made, control, first=0, second=0, instruction=VMMCALL):
    """Make a hypercall; return what came of it, and the result."""
    made.load(instruction + code.MARKER, rcx=control, rdx=first, r8=second, rax=0xBAD)
    outcome = made.finish()
    return outcome, made.regs.rax


def word(made, address, size=8):
    return int.from_bytes(made.memory.view[address : address + size], "little")
