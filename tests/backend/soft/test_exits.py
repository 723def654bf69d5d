# SPDX-License-Identifier: Apache-2.0
"""What the soft backend does at exits that the conformance items do not come by."""

import pytest

from kvmsr import backend
from kvmsr.backend.soft.cpu.vmcb import Exit
from kvmsr.backend.soft.exits import HANDLERS
from kvmsr.kvm import Kvm
from kvmsr.kvm.exits import Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr
from tests.harness import CODE, GP_HANDLER, MSR, Guest

HANDLER = 0x2100
OUT = b"\xe6\xee\xf4"  # out %al, $0xee; hlt
HLT = b"\xf4"
PREFIX = b"\x0f\x0bkvm"
RDMSR = b"\x0f\x32"
SEND_IPI = 10


def make(profile="linux-6.18-amd", **options):
    return Guest(Kvm(backend.open("soft", profile=profile)), **options)


@pytest.fixture
def guest():
    guest = make()
    yield guest
    guest.close()


@pytest.fixture
def emulating():
    guest = make("linux-6.18-amd,force_emulation_prefix")
    yield guest
    guest.close()


def handle(guest, vector):
    """Let *vector* come out as OUT 0xee, and not go on."""
    guest.put(4 * vector, bytes((HANDLER & 0xFF, HANDLER >> 8, 0, 0)))
    guest.put(HANDLER, OUT)


def pushed_ip(guest):
    at = guest.vcpu.get_regs().rsp & 0xFFFF
    return int.from_bytes(guest.memory.view[at : at + 2], "little")


# NMIs


def with_nmi(guest, **fields):
    events = guest.vcpu.get_vcpu_events()
    events.nmi.pending = 1
    events.flags = 1 | 4  # NMI pending, shadow
    for name, value in fields.items():
        setattr(events.interrupt, name, value)
    guest.vcpu.set_vcpu_events(events)


@pytest.mark.parametrize("shadow", [0, 1])
def test_an_nmi_waits_for_the_end_of_a_shadow(guest, shadow):
    handle(guest, 2)
    guest.load(b"\x43\x43" + HLT)  # inc %bx, twice
    with_nmi(guest, shadow=shadow)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.get_regs().rbx == shadow
    assert pushed_ip(guest) == CODE + shadow


def test_waiting_for_the_end_of_a_shadow_does_not_show_in_the_flags(guest):
    handle(guest, 2)
    guest.load(b"\x0f\x0b" + HLT)  # ud2: its frame is pushed while the engine steps
    guest.put(4 * 6, bytes((0x00, 0x30, 0, 0)))
    guest.put(0x3000, b"\x43" + HLT)
    with_nmi(guest, shadow=1)
    assert isinstance(guest.vcpu.run(), IoOut)
    regs = guest.vcpu.get_regs()
    frame = bytes(guest.memory.view[regs.rsp : regs.rsp + 12])
    assert int.from_bytes(frame[:2], "little") == 0x3000
    assert not int.from_bytes(frame[10:12], "little") & 0x100  # TF in #UD's frame
    assert not int.from_bytes(frame[4:6], "little") & 0x100


# Forced emulation


def test_a_forced_rdmsr_is_the_emulators(emulating):
    emulating.load(PREFIX + RDMSR + HLT, rcx=MSR)
    exit_ = emulating.vcpu.run()
    assert isinstance(exit_, Rdmsr)
    assert emulating.vcpu.get_regs().rip == CODE + len(PREFIX)
    exit_.answer(0x1_0000_0002)
    assert isinstance(emulating.vcpu.run(), Hlt)
    regs = emulating.vcpu.get_regs()
    assert (regs.rax, regs.rdx, regs.rip) == (2, 1, CODE + len(PREFIX) + 3)


def test_a_forced_rdmsr_may_fault_behind_the_prefix(emulating):
    emulating.load(PREFIX + RDMSR + HLT, rcx=MSR)
    exit_ = emulating.vcpu.run()
    exit_.fault()
    assert isinstance(emulating.vcpu.run(), IoOut)
    assert pushed_ip(emulating) == CODE + len(PREFIX)
    assert emulating.vcpu.get_regs().rip == GP_HANDLER


@pytest.mark.parametrize(("code", "value"), [(b"\x43", 1), (b"\xbb\x34\x12", 0x1234)])
def test_any_other_forced_instruction_does_what_it_does(emulating, code, value):
    emulating.load(PREFIX + code + HLT)
    assert isinstance(emulating.vcpu.run(), Hlt)
    assert emulating.vcpu.get_regs().rbx == value


def test_a_forced_undefined_instruction_faults_behind_the_prefix(emulating):
    handle(emulating, 6)
    emulating.load(PREFIX + b"\x0f\x0b")
    assert isinstance(emulating.vcpu.run(), IoOut)
    assert pushed_ip(emulating) == CODE + len(PREFIX)


def test_without_the_switch_the_prefix_is_an_undefined_instruction(guest):
    handle(guest, 6)
    guest.load(PREFIX + RDMSR + HLT, rcx=MSR)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert pushed_ip(guest) == CODE


# Hypercalls


@pytest.mark.parametrize("instruction", [b"\x0f\x01\xc1", b"\x0f\x01\xd9"], ids=["call", "mcall"])
@pytest.mark.parametrize(("number", "result"), [(1, 0), (99, -1000), (9, -95), (12, -1000)])
def test_hypercalls(guest, instruction, number, result):
    guest.load(instruction + HLT, rax=number)
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rax == result & 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("low", "least", "icr", "result"),
    [(1, 0, 0x4030, 1), (3, 0, 0x4030, 1), (1, 1, 0x4030, 0), (1, 0, 0x4830, -22)],
)
def test_ipis_by_hypercall(low, least, icr, result):
    guest = make(irqchip=True)
    handle(guest, 0x30)
    lapic = guest.vcpu.get_lapic()
    lapic.regs[0xF1] = 1  # enabled by the spurious vector register
    guest.vcpu.set_lapic(lapic)
    guest.load(
        b"\x0f\x01\xd9\xfb\x90" + OUT,  # vmmcall; sti; nop; out
        rax=SEND_IPI, rbx=low, rdx=least, rsi=icr,
    )  # fmt: skip
    assert isinstance(guest.vcpu.run(), IoOut)
    regs = guest.vcpu.get_regs()
    assert regs.rax == result & 0xFFFF_FFFF
    assert (regs.rip & ~0xFF == HANDLER) == (result == 1)
    guest.close()


def test_the_hypercalls_are_in_cpuid_and_there_is_room_for_a_topology():
    kvm = Kvm(backend.open("soft"))
    table = kvm.get_supported_cpuid()
    assert table.find(0xB) is not None
    signature = table.find(0x40000000)
    words = (signature.ebx, signature.ecx, signature.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"KVMKVMKVM\0\0\0"
    assert table.find(0x40000001).eax >> 11 & 1
    kvm.close()


# Debug exceptions


def test_icebp_is_a_trap(guest):
    handle(guest, 1)
    guest.load(b"\x2e\xf1\x43" + HLT)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert pushed_ip(guest) == CODE + 2


def test_a_breakpoint_moves_with_its_register(guest):
    handle(guest, 1)
    debug = guest.vcpu.get_debugregs()
    debug.db[0], debug.dr7 = 0x5000, 0x402
    guest.vcpu.set_debugregs(debug)
    guest.load(b"\x0f\x23\xc3\x43" + HLT, rbx=CODE + 3)  # mov %ebx, %dr0; inc %bx
    assert isinstance(guest.vcpu.run(), IoOut)
    assert pushed_ip(guest) == CODE + 3


def test_dr6_forgets_the_breakpoint_before_and_nothing_else(guest):
    handle(guest, 1)
    debug = guest.vcpu.get_debugregs()
    debug.db[2], debug.dr7, debug.dr6 = CODE + 1, 0x420, 0xFFFF4FF2
    guest.vcpu.set_debugregs(debug)
    guest.load(b"\x90\x43" + HLT)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.get_debugregs().dr6 == 0xFFFF4FF4


# The rest


def test_pause_is_skipped(guest):
    guest.load(b"\xf3\x90\x43" + HLT)
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rbx == 1


def test_string_input_to_no_memory(guest):
    sregs = guest.vcpu.get_sregs()
    sregs.es.base = 0x400000
    guest.vcpu.set_sregs(sregs)
    guest.load(b"\xf3\x6c" + HLT, rdi=0x10, rcx=2, rdx=0xE9)  # rep insb
    read = guest.vcpu.run()
    assert isinstance(read, IoIn)
    read.data[:] = b"\x12\x34"[: len(read.data)]
    writes = []
    while not isinstance(exit_ := guest.vcpu.run(), Hlt):
        assert isinstance(exit_, MmioWrite)
        writes.append((exit_.address, bytes(exit_.data)))
    assert writes == [(0x400010, b"\x12"), (0x400011, b"\x34")]
    assert guest.vcpu.get_regs().rcx == 0


def test_a_deadline_that_is_over_interrupts_at_once():
    guest = make(irqchip=True)
    handle(guest, 0x30)
    guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid())
    lapic = guest.vcpu.get_lapic()
    lapic.regs[0xF1] = 1
    lapic.regs[0x320:0x324] = (0x40030).to_bytes(4, "little")  # its timer has deadlines
    guest.vcpu.set_lapic(lapic)
    guest.load(
        b"\xfb\x90\x0f\x30" + b"\x43" * 8 + HLT, rcx=0x6E0, rax=1
    )  # sti; nop; wrmsr; inc %bx
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.get_regs().rbx == 0
    guest.close()


def test_a_second_nmi_is_kept_and_a_third_is_not(guest):
    guest.put(4 * 2, bytes((0x00, 0x21, 0, 0)))
    guest.put(HANDLER, b"\x43\xcf")  # inc %bx; iret
    guest.load(b"\x90\x90\x90" + HLT)
    for _ in range(3):
        guest.vcpu.nmi()
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rbx == 2


def test_the_local_apic_moves_with_its_base():
    guest = make(irqchip=True)
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = 0x300000
    guest.vcpu.set_sregs(sregs)
    read = b"\x66\xa1\x30\x00"  # mov 0x30, %eax: the version register
    guest.load(
        read + b"\x0f\x30" + read + OUT, rcx=0x1B, rax=0x300900, rdx=0
    )  # the WRMSR writes what the first read gave
    first = guest.vcpu.run()
    assert isinstance(first, MmioRead)
    assert first.address == 0x300030
    first.data[:] = (0x300900).to_bytes(4, "little")
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.get_regs().rax & 0xFF == 0x14
    guest.close()


def test_a_breakpoint_that_is_no_longer_there_is_not_met(guest):
    """A kernel patches itself by INT3; another vCPU still has that translated and comes out."""
    vcpu = guest.kvm.backend._objects[guest.vcpu.fd]
    guest.load(HLT)
    assert isinstance(guest.vcpu.run(), Hlt)  # it has its memory now
    guest.load(b"\x43" + HLT)  # inc %bx
    assert not HANDLERS[Exit.SWINT](vcpu, 0)
    assert guest.vcpu.get_regs().rip == CODE
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rbx == 1
