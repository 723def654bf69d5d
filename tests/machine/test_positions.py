"""Where the guest was, when a run is over that it did not end itself."""

import threading

import pytest

from kvmsr.machine import Boot, Machine
from kvmsr.policy import Policy, Rule
from kvmsr.session import End, EndKind, LastAccess
from kvmsr.symbols import Symbols

SPIN = b"\xeb\xfe"
BASE = {16: 0x7C00, 32: 0x100000, 64: 0x100000}


@pytest.fixture(autouse=True)
def on(any_backend, monkeypatch):
    """Have the machines of these tests run on each backend that is here."""
    monkeypatch.setattr("kvmsr.machine.machine.choose_backend", lambda name: (any_backend, ""))
    return any_backend


def run(folder, code, mode=16, *, change=None, timeout=0.3, **options):
    (folder / "guest").write_bytes(code)
    with Machine(memory="4M", **options) as machine:
        machine.load(Boot(folder / "guest", mode=mode))
        if change is not None:
            change(machine.vcpus[0])
        return machine.run(timeout)


def only(result):
    (place,) = result.positions
    assert place.problem == ""
    return place


@pytest.mark.parametrize(("mode", "name"), [(16, "real"), (32, "protected"), (64, "long")], ids=str)
def test_a_guest_that_spins(tmp_path, mode, name):
    result = run(tmp_path, b"\x90" + SPIN, mode)
    place = only(result)
    assert result.end.kind is EndKind.TIMEOUT
    assert (place.mode, place.bits, place.cpl) == (name, mode, 0)
    assert place.rip == place.linear == BASE[mode] + 1
    assert (place.state, place.interrupts, place.symbol) == ("running", False, "")
    assert place.port is place.memory is None


def test_a_segment_with_a_base(tmp_path):
    # ljmp $0x7c0, $5; there: sti; spin
    place = only(run(tmp_path, b"\xea\x05\x00\xc0\x07\xfb" + SPIN))
    assert (place.rip, place.linear, place.interrupts) == (6, 0x7C06, True)


def test_user_mode(tmp_path):
    def to_user(vcpu):
        sregs = vcpu.get_sregs()
        for name in ("cs", "ss", "ds", "es"):
            segment = getattr(sregs, name)
            segment.dpl = 3
            segment.selector |= 3
        vcpu.set_sregs(sregs)

    place = only(run(tmp_path, SPIN, 32, change=to_user))
    assert (place.mode, place.bits, place.cpl) == ("protected", 32, 3)


def test_compatibility_mode(tmp_path):
    def to_32_bits(vcpu):
        sregs = vcpu.get_sregs()
        sregs.cs.l, sregs.cs.db = 0, 1
        vcpu.set_sregs(sregs)

    place = only(run(tmp_path, SPIN, 64, change=to_32_bits))
    assert (place.mode, place.bits) == ("long", 32)


def test_a_guest_that_has_halted_for_good(tmp_path):
    result = run(tmp_path, b"\xfa\xf4", timeout=20)
    place = only(result)
    assert result.end.kind is EndKind.HALT
    assert (place.rip, place.state, place.interrupts) == (0x7C02, "halted", False)


def test_a_guest_that_polls_a_port(tmp_path):
    # in $0x64, %al; loop
    place = only(run(tmp_path, b"\xe4\x64\xeb\xfc"))
    assert place.port == LastAccess(0x64, False, 1, 0xFD, "keyboard controller")
    assert place.memory is None


def test_a_port_without_a_device(tmp_path):
    # mov $0x1234, %ax; mov $0x5678, %dx; out %ax, %dx; spin
    place = only(run(tmp_path, b"\xb8\x34\x12\xba\x78\x56\xef" + SPIN))
    assert place.port == LastAccess(0x5678, True, 2, 0x1234, "")


def test_a_guest_that_polls_memory(tmp_path):
    # mov 0xfed00000, %eax; loop
    place = only(run(tmp_path, b"\xa1\x00\x00\xd0\xfe\xeb\xf9", 32))
    assert place.memory == LastAccess(0xFED00000, False, 4, 0xFFFFFFFF, "")
    assert place.port is None


def test_the_last_of_several_kinds_of_access(tmp_path):
    # movb $0x5a, 0xff000000 (kvm-unit-tests' memory); mov $7, %al; out %al, $0x80; spin
    code = b"\xc6\x05\x00\x00\x00\xff\x5a" + b"\xb0\x07\xe6\x80" + SPIN
    place = only(run(tmp_path, code, 32))
    assert place.memory == LastAccess(0xFF000000, True, 1, 0x5A, "test memory")
    assert place.port == LastAccess(0x80, True, 1, 7, "")


def test_a_vcpu_that_has_not_been_started(tmp_path):
    first, second = run(tmp_path, SPIN, cpus=2).positions
    assert (first.vcpu, first.state) == (0, "running")
    assert (second.vcpu, second.state, second.linear) == (1, "waits for INIT", 0xFFFFFFF0)


def test_a_rule_that_stops_the_run(tmp_path):
    # mov $0x35, %ecx; rdmsr
    code = b"\x66\xb9\x35\x00\x00\x00\x0f\x32" + SPIN
    result = run(tmp_path, code, policy=Policy([Rule(0x35, read="stop")]))
    assert result.end.kind is EndKind.STOP
    assert only(result).rip == 0x7C06


def test_a_vcpu_that_does_not_come_back_is_said_to(tmp_path, monkeypatch):
    monkeypatch.setattr("kvmsr.machine.machine._GRACE", 0.2)
    held = threading.Event()
    # out %al, $0x80; mov $0x35, %ecx; rdmsr
    code = b"\xe6\x80\x66\xb9\x35\x00\x00\x00\x0f\x32" + SPIN
    policy = Policy([Rule(0x35, read=lambda access: held.wait(60) and 1)])
    try:
        result = run(tmp_path, code, policy=policy)
    finally:
        held.set()
    (place,) = result.positions
    assert place.problem == "it has not come back from its last exit"
    assert place.port.address == 0x80
    assert "rip" not in place.as_dict()


@pytest.mark.parametrize("code", [b"\xb0\x00\xe6\xf4", b"\xb0\xfe\xe6\x64"], ids=["exit", "reset"])
def test_nothing_is_said_if_the_guest_ended_the_run(tmp_path, code):
    assert run(tmp_path, code + SPIN, timeout=20).positions == ()


def test_a_crash(tmp_path):
    def without_idt(vcpu):
        sregs = vcpu.get_sregs()
        sregs.idt.limit = 0
        vcpu.set_sregs(sregs)

    result = run(tmp_path, b"\x90\x0f\x0b", 32, change=without_idt, timeout=20)
    assert result.end.detail == "triple fault"
    assert len(result.positions) == 1


def test_the_last_line_of_output(tmp_path):
    # mov $0x7c14, %si; cld; mov $0x3f8, %dx; mov $COUNT, %cx; rep outsb; spin
    text = b"first\r\nlast \x1b[1mline\r\n\r\n"
    code = b"\xbe\x14\x7c\xfc\xba\xf8\x03\xb9" + len(text).to_bytes(2, "little") + b"\xf3\x6e"
    result = run(tmp_path, (code + SPIN).ljust(0x14, b"\x90") + text)
    assert result.last_line == "last \x1b[1mline"
    port = only(result).port
    assert (port.device, port.write, port.value) == ("uart", True, 0x0A)


def test_the_last_line_on_the_debug_console(tmp_path):
    # mov $'D', %al; out %al, $0xe9; spin
    assert run(tmp_path, b"\xb0D\xe6\xe9" + SPIN).last_line == "D"


def test_linux_that_has_panicked(on, kernel):
    if on.name != "soft":
        pytest.skip("the same code on every backend, and soft boots Linux everywhere")
    sent = bytearray()

    def output(data):
        sent.extend(data)
        if sent.endswith(b" ]---") and b"end Kernel panic" in sent:
            machine.end(End(EndKind.STOP, 6, "it has panicked"))

    with Machine(memory="256M", output=output) as machine:
        machine.load(Boot(kernel, "console=ttyS0 panic=0"))
        result = machine.run(120)
        raw = only(result)
        symbols = Symbols.read(kernel)
    assert "end Kernel panic" in result.last_line
    assert (raw.mode, raw.bits, raw.cpl) == ("long", 64, 0)
    # It is where it was linked, as its entry at SYSCALL says.
    assert raw.symbol == symbols.name(raw.rip) != ""
    assert raw.port.device == "uart"
