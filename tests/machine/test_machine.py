"""Guests in our machine: what they see is what the policy says, and the summary agrees."""

import gc
import re
import threading
import time
from pathlib import Path

import pytest

from kvmsr.abi import Cap, ioctls
from kvmsr.backend import HostBackend
from kvmsr.errors import BackendError, CapabilityError, PolicyError, UsageError
from kvmsr.machine import Boot, Machine
from kvmsr.machine.probe import probe
from kvmsr.msr import HandledRange, handled
from kvmsr.policy import Defaults, Fault, Policy, Rule, on_read, on_write
from kvmsr.policy.plan import KernelFacts
from kvmsr.session import EndKind
from tests.conftest import GUESTS

MSR = 0x474F4F00


@pytest.fixture(autouse=True)
def on(any_backend, monkeypatch):
    """Have the machines of these tests run on each backend that is here."""
    monkeypatch.setattr("kvmsr.machine.machine.choose_backend", lambda name: (any_backend, ""))
    return any_backend


def run(image, policy=None, *, append="", mode=None, timeout=30, **options):
    """Run *image*; return the result and what the guest sent."""
    sent = bytearray()
    options = {"memory": 16 << 20, "output": sent.extend} | options
    with Machine(policy=policy, **options) as machine:
        machine.load(Boot(image, append, mode=mode))
        result = machine.run(timeout)
    return result, sent.decode().replace("\r\n", "\n").splitlines()


def run_list(words, policy=None, **options):
    return run(GUESTS / "list.elf", policy, append=words, **options)


def run_code(tmp_path, code, policy=None, **options):
    (tmp_path / "code").write_bytes(code)
    return run(tmp_path / "code", policy, mode=16, **options)


def rows(result):
    return {(row.index, str(row.op)): row for row in result.summary}


POLICY = Policy(
    [
        Rule("MSR_CORE_THREAD_COUNT", read=0x20004),
        Rule("IA32_PAT", read=0x1122334455667788, write="ignore"),
        Rule("IA32_ENERGY_PERF_BIAS", read="shadow", write="shadow", reset=6),
        Rule("MSR_K7_HWCR", read="fault", write="fault"),
        Rule(MSR, read="ignore", write="ignore"),
    ]
)


def agrees(lines, result):
    """Check that the guest's own print-out and the summary say the same, line by line."""
    summary = rows(result)
    for line in lines:
        match = re.fullmatch(r"(rd|wr)msr 0x([0-9a-f]{8})(?: = 0x([0-9a-f]{16}))?( #GP)?", line)
        assert match, line
        op = "read" if match[1] == "rd" else "write"
        row = summary[int(match[2], 16), op]
        assert row.count == 1
        outcomes = row.as_dict()["outcomes"]
        wanted = "fault" if match[4] else "value" if op == "read" else "done"
        assert outcomes == {"value": 0, "done": 0, "fault": 0, "stop": 0} | {wanted: 1}
        if match[3]:
            assert row.last_value == int(match[3], 16)
        else:
            assert row.last_value is None
    assert len(lines) == len(summary)


def test_what_the_guest_prints_and_what_is_reported_agree():
    words = f"35 277 277=5 1b0 1b0=f c0010015 c0010015=1 {MSR:x} {MSR:x}=77 12345678 12345678=1"
    result, lines = run_list(words, POLICY)
    agrees(lines, result)
    summary = rows(result)
    filtered = {0x277, 0xC0010015}
    for (index, op), row in summary.items():
        assert row.reason == ("filter" if index in filtered else "unknown"), (hex(index), op)
        assert row.first_rip is not None
    assert summary[0x35, "read"].rule == "rule[0]"
    assert summary[0x12345678, "read"].rule == "defaults.unknown"
    assert "rdmsr 0x00000277 = 0x1122334455667788" in lines
    assert (result.end.kind, result.exit_status) == (EndKind.POWEROFF, 0)


def test_kvm_keeps_its_own_value_of_a_filtered_msr():
    with Machine(policy=POLICY, memory=16 << 20) as machine:
        before = machine.vcpus[0].get_msrs([0x277])
        machine.load(Boot(GUESTS / "list.elf", "277=5 277"))
        machine.run(10)
        assert machine.vcpus[0].get_msrs([0x277]) == before
        assert before[0x277] != 0x1122334455667788


def test_an_access_in_each_mode():
    result, lines = run(GUESTS / "modes.bin", POLICY, mode=16)
    value = "0x0000000000020004"
    assert lines == [f"{name} rdmsr 0x00000035 = {value}" for name in ("real", "protected", "long")]
    assert rows(result)[0x35, "read"].count == 3


def test_a_shadow_is_read_back_and_defaults_decide():
    defaults = Defaults(unknown="shadow")
    _, lines = run_list("1234 1234=abc 1234", Policy(defaults=defaults))
    assert lines[0].endswith("= 0x0000000000000000")
    assert lines[2].endswith("= 0x0000000000000abc")


def test_invalid_values_follow_their_default():
    # A reserved bit of EFER: KVM knows the MSR and refuses the value.
    result, lines = run_list("c0000080=1000000000000")
    assert lines[0].endswith("#GP")
    assert rows(result)[0xC0000080, "write"].reason == "invalid"
    assert rows(result)[0xC0000080, "write"].rule == "defaults.invalid"
    _, lines = run_list("c0000080=1000000000000", Policy(defaults=Defaults(invalid="ignore")))
    assert not lines[0].endswith("#GP")


def test_kernel_leaves_it_to_kvm():
    policy = Policy([Rule(0x277, read="kernel"), Rule("0x0-0x2ff", read="fault")])
    result, lines = run_list("277 278", policy)
    assert not lines[0].endswith("#GP")
    assert lines[1].endswith("#GP")
    assert set(rows(result)) == {(0x278, "read")}


EFER = Rule("IA32_EFER", read="kernel", write="kernel")  # the guest needs it for long mode
ALL_ELSE = Rule("0x0-0xffffffff", read="fault", write="fault")


def test_what_a_default_deny_filter_sweeps_up_follows_the_default_for_unknown():
    swept = Rule(0x12345678, read="kernel", write="kernel")
    policy = Policy([EFER, swept, ALL_ELSE], Defaults(unknown="ignore"))
    result, lines = run_list("277 12345678 12345678=1", policy)
    assert [line.endswith("#GP") for line in lines] == [True, False, False]
    read = rows(result)[0x12345678, "read"]
    assert (read.reason, read.rule) == ("unknown", "defaults.unknown")


def test_unless_this_kvm_knows_it_then_kvm_answers(monkeypatch):
    # As if 0x174 were newer than what is known of KVMs.
    others = (HandledRange(0, 0x173, True, True), HandledRange(0x175, (1 << 32) - 1, True, True))
    monkeypatch.setattr(
        "kvmsr.session.fitting.KernelFacts", lambda **kw: KernelFacts(handled=others, **kw)
    )
    policy = Policy([EFER, Rule(0x174, read="kernel", write="kernel"), ALL_ELSE])
    result, lines = run_list("174=1234 174 175", policy)
    assert lines[1] == "rdmsr 0x00000174 = 0x0000000000001234"
    assert lines[2].endswith("#GP")
    assert (rows(result)[0x174, "read"].reason, rows(result)[0x174, "read"].rule) == (
        "filter",
        "rule[1]",
    )


def test_an_msr_that_this_kvm_turns_out_to_know_is_taken_from_it(monkeypatch):
    others = tuple(r for r in handled() if not r.first <= 0x277 <= r.last)
    monkeypatch.setattr(
        "kvmsr.session.fitting.KernelFacts", lambda **kw: KernelFacts(handled=others, **kw)
    )
    result, lines = run_list("277", Policy([Rule(0x277, read=5)]))
    assert lines == ["rdmsr 0x00000277 = 0x0000000000000005"]
    assert rows(result)[0x277, "read"].reason == "filter"


def test_of_too_many_msrs_to_ask_about_the_likely_ones_come_first(monkeypatch):
    monkeypatch.setattr("kvmsr.session.fitting.KernelFacts", lambda **kw: KernelFacts((), **kw))
    monkeypatch.setattr("kvmsr.session.fitting._MAX_ASKED", 100)
    policy = Policy([Rule("0xC0000000-0xC0001FFF", read=5), Rule(0x277, read=6)])
    with Machine(memory=64 << 20, policy=policy) as machine:
        known = {r.first for r in machine.plan.kernel.handled}
        assert {0x277, 0xC0000081} <= known  # alone in its rule; listed
        assert any("not handling them" in note for note in machine.plan.warnings)


def test_on_a_host_that_swallows_unknown_msrs_the_policy_still_decides():
    # This host does not, but the plan is the same: everything unknown is denied by the filter.
    policy = Policy([Rule(0x35, read=7)])
    result, lines = run_list("35 36 277", policy, ignore_msrs=True)
    assert lines[0].endswith("7")
    assert lines[1].endswith("#GP")
    assert not lines[2].endswith("#GP")
    assert {row.reason for row in result.summary} == {"unknown"}
    assert rows(result)[0x36, "read"].rule == "defaults.unknown"
    assert any("ignore_msrs" in note for note in result.notes)


# Handlers


def test_handlers_answer():
    seen = []

    @on_read(MSR)
    def count(access):
        seen.append(access)
        return len(seen)

    @on_write(MSR)
    def refuse(access):
        seen.append(access)
        raise Fault

    result, lines = run_list(f"{MSR:x} {MSR:x} {MSR:x}=5", Policy([count, refuse]))
    assert [line[-2:] for line in lines] == ["01", "02", "GP"]
    assert [(str(a.op), a.index, a.value, a.vcpu) for a in seen] == [
        ("read", MSR, 0, 0),
        ("read", MSR, 0, 0),
        ("write", MSR, 5, 0),
    ]
    assert result.exit_status == 0


def broken(access):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("on_error", "line"), [("fault", "#GP"), ("ignore", "= 0x0000000000000000")]
)
def test_a_handler_that_raises_is_reported_and_the_run_fails(on_error, line):
    policy = Policy([Rule(MSR, read=broken)], Defaults(on_error=on_error))
    result, lines = run_list(f"{MSR:x}", policy)
    assert lines[0].endswith(line)
    assert result.exit_status == 6
    assert result.failure_count == 1
    failures = result.as_dict()["handler_failures"]
    assert "test_machine:broken" in failures["first"][0]["handler"]
    assert failures["first"][0]["message"] == "raised RuntimeError: out of order"


def test_a_handler_that_raises_may_stop_the_run():
    policy = Policy([Rule(MSR, read=broken)], Defaults(on_error="stop"))
    result, lines = run_list(f"{MSR:x} 35", policy)
    assert lines == ["rdmsr 0x474f4f00"]  # and no more
    assert (result.end.kind, result.exit_status) == (EndKind.STOP, 6)


def test_stop_says_where():
    result, lines = run_list("35 1234 35", Policy([Rule(0x1234, read="stop")]))
    assert lines == ["rdmsr 0x00000035 #GP", "rdmsr 0x00001234"]
    assert result.end.kind is EndKind.STOP
    assert re.fullmatch(
        r"rule\[0\] stops the run at a read of MSR 0x1234 on vCPU 0, RIP 0x10\w+", result.end.detail
    )
    row = rows(result)[0x1234, "read"]
    assert (row.count, row.values, row.faults) == (1, 0, 0)


# How guests end


def test_a_debug_exit_gives_the_status(tmp_path):
    result, _ = run_code(tmp_path, b"\xb0\x10\xe6\xf4")  # mov $16, %al; out %al, $0xf4
    assert (result.end.kind, result.end.code, result.exit_status) == (EndKind.DEBUG_EXIT, 33, 33)
    result, _ = run_code(tmp_path, b"\xba\x01\x05\xb0\xff\xee")  # the other port, 0x501
    assert result.exit_status == 255


def test_a_guest_that_halts_for_good_is_found_out(tmp_path):
    result, _ = run_code(tmp_path, b"\xfa\xf4\xeb\xfd")
    assert (result.end.kind, result.exit_status) == (EndKind.HALT, 0)


def test_so_is_one_with_several_cpus(tmp_path):
    result, _ = run_code(tmp_path, b"\xfa\xf4\xeb\xfd", cpus=3)
    assert result.end.kind is EndKind.HALT


def test_where_nothing_can_wake_it_the_run_ends_at_once(tmp_path, on, monkeypatch):
    if on.name != "soft":
        pytest.skip("KVM does not report that every vCPU sleeps; the machine polls")
    monkeypatch.setattr("kvmsr.machine.watch._SHORTEST", 3600.0)
    for cpus in (1, 3):
        result, _ = run_code(tmp_path, b"\xfa\xf4\xeb\xfd", cpus=cpus, timeout=60)
        assert (result.end.kind, result.exit_status) == (EndKind.HALT, 0)


def test_but_not_one_that_waits_for_an_interrupt(tmp_path, on):
    # The PIT ticks at IRQ 0, the 8259s start with vectors from 8: the handler counts and leaves.
    handler = (
        b"\x50\xfe\x06\x00\x60\xb0\x20\xe6\x20\x58\x80\x3e\x00\x60\x05\x75\x04\xb0\x00\xe6\xf4\xcf"
    )
    code = (
        b"\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x70"  # cli, segments, stack
        b"\xc7\x06\x20\x00\x00\x7d\xc7\x06\x22\x00\x00\x00"  # vector 8 → 0:7d00
        b"\xb0\x11\xe6\x20\xb0\x08\xe6\x21\xb0\x04\xe6\x21\xb0\x01\xe6\x21"  # 8259: base 8
        b"\xb0\xfe\xe6\x21"  # only IRQ 0
        b"\xb0\x34\xe6\x43\xb0\x00\xe6\x40\xe6\x40"  # PIT: 18.2 Hz
        b"\xfb\xf4\xeb\xfd"  # sti; hlt; again
    )
    result, _ = run_code(tmp_path, code.ljust(0x100, b"\x90") + handler)
    assert (result.end.kind, result.exit_status) == (EndKind.DEBUG_EXIT, 1)
    assert (result.wall_s > 0.2) == (on.name == "kvm")  # soft's time is virtual


def test_nor_one_that_waits_for_an_nmi(tmp_path):
    image = tmp_path / "guest.bin"
    image.write_bytes(b"\xfa\xf4\xeb\xfd")  # cli; hlt; jmp
    with Machine(memory=64 << 20) as machine:
        machine.load(Boot(image, mode=16))
        lapic = machine.vcpus[0].get_lapic()
        lapic.regs[0x350:0x354] = list((0x400).to_bytes(4, "little"))  # LINT0 is an NMI
        machine.vcpus[0].set_lapic(lapic)
        assert machine.run(timeout=1).end.kind is EndKind.TIMEOUT


def test_a_timeout_ends_the_run(tmp_path):
    result, _ = run_code(tmp_path, b"\xeb\xfe", timeout=0.3, cpus=2)
    assert (result.end.kind, result.exit_status) == (EndKind.TIMEOUT, 124)
    assert result.end.detail == "0.3 seconds are over"
    assert result.wall_s < 5


def test_resets_and_power_off_are_reported(tmp_path):
    for code, kind in (
        (b"\xb0\xfe\xe6\x64", EndKind.RESET),  # keyboard controller
        (b"\xb0\x01\xe6\x92", EndKind.RESET),
        (b"\xba\xf9\x0c\xb0\x06\xee", EndKind.RESET),
        (b"\xba\x04\x06\xb8\x00\x20\xef", EndKind.POWEROFF),
    ):
        result, _ = run_code(tmp_path, code)
        assert (result.end.kind, result.exit_status) == (kind, 0)


def test_a_triple_fault_is_a_crash(tmp_path):
    (tmp_path / "code").write_bytes(b"\x0f\x0b")  # ud2 without an IDT
    result, _ = run(tmp_path / "code", mode=64)
    assert (result.end.kind, result.exit_status) == (EndKind.SHUTDOWN, 5)
    assert result.end.detail == "triple fault"


def test_an_emulation_failure_is_explained(tmp_path, on):
    failed = probe(on).failed
    if "cmpxchg16b" not in failed:
        pytest.skip("this KVM emulates cmpxchg16b, or need not")
    (tmp_path / "code").write_bytes(b"\x90\xbf\x00\x00\x20\x00\xf0\x48\x0f\xc7\x0f")
    result, _ = run(tmp_path / "code", mode=64)
    assert (result.end.kind, result.exit_status) == (EndKind.EMULATION_FAILURE, 5)
    assert "RIP 0x100006 (64-bit code)" in result.end.detail
    assert "lock cmpxchg16b xmmword ptr [rdi] [f0 48 0f c7 0f]" in result.end.detail


def test_ctrl_c_ends_a_run_with_its_summary(tmp_path):
    import _thread

    threading.Timer(0.3, _thread.interrupt_main).start()
    result, _ = run_code(tmp_path, b"\xeb\xfe")
    assert (result.end.kind, result.end.detail) == (EndKind.STOP, "interrupted")
    assert result.exit_status == 130


def test_a_console_that_is_gone_ends_the_run(tmp_path):
    def closed(data):
        raise BrokenPipeError(32, "Broken pipe")

    result, _ = run_code(tmp_path, b"\xb0\x41\xe6\xe9\xeb\xfe", output=closed)
    assert result.end.kind is EndKind.ERROR
    assert "Broken pipe" in result.end.detail


# Input


ECHO = (
    b"\xba\xfd\x03\xec\xa8\x01\x74\xf8"  # wait for the UART's "data ready"
    b"\xba\xf8\x03\xec\xee\x3c\x0a\x75\xf0"  # read, send back, until a line feed
    b"\xb0\x00\xe6\xf4"
)


def test_the_guest_reads_what_is_typed(tmp_path):
    (tmp_path / "echo").write_bytes(ECHO)
    sent = bytearray()
    with Machine(memory=16 << 20, output=sent.extend) as machine:
        machine.load(Boot(tmp_path / "echo", mode=16))
        threading.Timer(0.1, machine.board.uart.receive, (b"hello\n",)).start()
        result = machine.run(20)
    assert result.exit_status == 1
    assert sent == b"hello\n"


# Several vCPUs


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_several_vcpus_each_read_what_they_wrote(cpus):
    policy = Policy(defaults=Defaults(unknown="shadow"))
    result, _ = run(GUESTS / "smp.bin", policy, mode=32, cpus=cpus)
    assert result.exit_status == 1, "a vCPU read what it had not written"
    assert result.summary.totals() == {"reads": 1000 * cpus, "writes": 1000 * cpus, "faults": 0}


# What a machine refuses


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="0 CPUs"):
        Machine(cpus=0)
    with pytest.raises(UsageError, match="this KVM runs"):
        Machine(cpus=100_000)
    with pytest.raises(PolicyError, match="x2APIC"):
        Machine(policy=Policy([Rule(0x802, read=1)]))
    with Machine(memory=16 << 20) as machine:
        with pytest.raises(UsageError, match="nothing is loaded"):
            machine.run()
        machine.load(Boot(GUESTS / "list.elf", "35"))
        machine.run(10)
        with pytest.raises(UsageError, match="has run already"):
            machine.run()


class Older(HostBackend):
    """The host's KVM, as if it had not these capabilities."""

    def __init__(self, *missing):
        super().__init__()
        self.missing = missing

    def ioctl(self, fd, request, arg=0):
        if request == ioctls.KVM_CHECK_EXTENSION and arg in self.missing:
            return 0
        if request == ioctls.KVM_GET_API_VERSION and "version" in self.missing:
            return 11
        return super().ioctl(fd, request, arg)


def test_a_kvm_without_the_capabilities_is_refused_by_their_names():
    missing = (Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
    wanted = "lacks KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_X86_MSR_FILTER; Linux 5.10"
    with pytest.raises(CapabilityError, match=wanted) as caught:
        Machine(Older(*missing))
    assert caught.value.exit_status == 4
    with pytest.raises(BackendError, match="version 11 of its API and kvmsr speaks 12"):
        Machine(Older("version"))


def test_a_guest_that_touches_a_million_msrs_costs_little_memory(tmp_path):
    code = (
        b"\x66\xb9\x00\x00\x00\x10"  # mov $0x10000000, %ecx
        b"\x66\xbb\x40\x42\x0f\x00"  # mov $1000000, %ebx
        b"\x0f\x32\x66\x41\x66\x4b\x75\xf8"  # rdmsr; inc %ecx; dec %ebx; jnz
        b"\xb0\x00\xe6\xf4"
    )
    before = resident()
    result, _ = run_code(tmp_path, code, Policy(defaults=Defaults(unknown="ignore")), timeout=120)
    assert resident() - before < 40 << 20
    assert result.summary.totals()["reads"] == 1_000_000
    assert result.summary.rest() == "… and 995,904 accesses to 995,904 other MSRs"


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_machines_leave_nothing_behind():
    def files():
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    count, threads = files(), threading.active_count()
    for _ in range(20):
        run_list("35")
    gc.collect()
    assert files() == count
    assert threading.active_count() == threads


def test_a_handler_at_work_keeps_its_machine(monkeypatch):
    monkeypatch.setattr("kvmsr.machine.machine._GRACE", 0.3)
    let_go = threading.Event()

    def slow(access):
        let_go.wait(30)
        return 1

    machine = Machine(memory=64 << 20, policy=Policy([Rule(0x35, read=slow)]))
    machine.load(Boot(GUESTS / "list.elf", "35"))
    result = machine.run(timeout=0.5)
    assert any("did not stop" in note for note in result.notes)
    machine.close()
    assert machine.vcpus[0].fd >= 0  # its thread is to come back to it
    let_go.set()
    machine._threads[0].join(10)
    machine.close()
    assert machine.vcpus[0].fd < 0


def test_closing_ends_a_run_that_goes_on(tmp_path):
    (tmp_path / "loop").write_bytes(b"\xeb\xfe")
    machine = Machine(memory=16 << 20)
    machine.load(Boot(tmp_path / "loop", mode=16))
    runner = threading.Thread(target=machine.run)
    runner.start()
    time.sleep(0.2)
    machine.close()
    runner.join(10)
    assert not runner.is_alive()


def test_an_interruption_while_the_threads_start_is_one_of_the_run(tmp_path, monkeypatch):
    start = threading.Thread.start

    def start_and_interrupt(thread):
        start(thread)
        raise KeyboardInterrupt

    (tmp_path / "loop").write_bytes(b"\xeb\xfe")
    with Machine(memory=16 << 20) as machine:
        machine.load(Boot(tmp_path / "loop", mode=16))
        monkeypatch.setattr("kvmsr.machine.machine.VcpuThread.start", start_and_interrupt)
        result = machine.run(timeout=20)
    assert (result.end.kind, result.end.detail) == (EndKind.STOP, "interrupted")
