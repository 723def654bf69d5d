"""MSR exits: each is answered exactly once, and completed when its owner wants it."""

import signal
import threading
import time

import pytest

from kvmsr.abi import EventFlag, MsrExitReason, MsrFilterFlag, ioctls
from kvmsr.errors import ExitAnsweredError, ExitUnansweredError, UsageError
from kvmsr.kvm import Kvm, MsrFilterRange
from kvmsr.kvm.exits import Interrupted, IoOut, Rdmsr, Wrmsr
from tests.harness import CODE, GP_HANDLER, MSR, Guest

RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"
DONE = b"\xe6\xe9"  # out %al, $0xe9
LOOP = b"\xeb\xfe"


def stop_at_read(guest, rest=DONE):
    guest.load(RDMSR + rest, rcx=MSR, rax=0x1111, rdx=0x2222)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, Rdmsr)
    return exit_


def test_a_read_gets_its_value(guest):
    exit_ = stop_at_read(guest)
    assert (exit_.index, exit_.reason) == (MSR, MsrExitReason.UNKNOWN)
    exit_.answer(0xAAAA_BBBB_CCCC_DDDD)
    done = guest.vcpu.run()
    assert isinstance(done, IoOut)
    assert done.port == 0xE9
    regs = guest.vcpu.get_regs()
    assert (regs.rdx, regs.rax) == (0xAAAABBBB, 0xCCCCDDDD)


def test_a_write_tells_its_value(guest):
    guest.load(WRMSR + DONE, rcx=MSR | 7 << 32, rax=0x9_1234_5678, rdx=0x9_9ABC_DEF0)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, Wrmsr)
    assert (exit_.index, exit_.value) == (MSR, 0x9ABC_DEF0_1234_5678)
    exit_.done()
    assert guest.vcpu.run().port == 0xE9


@pytest.mark.parametrize("code", [RDMSR, WRMSR])
def test_a_fault_raises_gp_at_the_instruction(guest, code):
    guest.load(code + DONE, rcx=MSR, rax=1, rdx=2)
    guest.vcpu.run().fault()
    assert guest.vcpu.run().port == 0xEE
    regs = guest.vcpu.get_regs()
    frame = bytes(guest.memory.view[regs.rsp : regs.rsp + 2])
    assert int.from_bytes(frame, "little") == CODE
    assert (regs.rax, regs.rdx) == (1, 2)


def test_running_on_without_an_answer_is_refused(guest):
    exit_ = stop_at_read(guest)
    for call in (guest.vcpu.run, guest.vcpu.complete_pending):
        with pytest.raises(ExitUnansweredError, match=r"Rdmsr\(index=0x474f4f00"):
            call()
    exit_.answer(7)  # and it is still there to be answered
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rax == 7


def test_a_second_answer_is_refused(guest):
    exit_ = stop_at_read(guest)
    exit_.answer(7)
    for again in (lambda: exit_.answer(8), exit_.fault):
        with pytest.raises(ExitAnsweredError):
            again()
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rax == 7
    with pytest.raises(ExitAnsweredError):
        exit_.answer(9)


def test_an_answer_to_an_older_exit_is_refused(guest):
    old = stop_at_read(guest, RDMSR + DONE)
    old.answer(1)
    new = guest.vcpu.run()
    with pytest.raises(ExitAnsweredError):
        old.fault()
    new.answer(2)
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rax == 2


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_value_of_more_than_64_bits_is_refused_and_may_be_corrected(guest, value):
    exit_ = stop_at_read(guest)
    with pytest.raises(UsageError, match="64 bits"):
        exit_.answer(value)
    exit_.answer(5)
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rax == 5


# Completing what is pending (Linux api.rst, KVM_RUN; the specification's C.10)


def test_complete_pending_finishes_the_read_and_runs_nothing_else(guest):
    # The next instruction would write memory: it must not have run.
    store = b"\xc6\x06\x00\x50\x01"  # movb $1, 0x5000
    exit_ = stop_at_read(guest, store + DONE)
    before = guest.vcpu.get_regs()
    assert before.rip == CODE
    exit_.answer(0x5_0000_0003)
    assert guest.vcpu.complete_pending() is None
    after = guest.vcpu.get_regs()
    assert after.rip == CODE + len(RDMSR)
    assert (after.rax, after.rdx) == (3, 5)
    assert guest.memory.view[0x5000] == 0
    assert guest.vcpu.run().port == 0xE9
    assert guest.memory.view[0x5000] == 1


def test_complete_pending_keeps_a_queued_gp(guest):
    stop_at_read(guest).fault()
    assert guest.vcpu.complete_pending() is None
    assert guest.vcpu.get_regs().rip == CODE
    exception = guest.vcpu.get_vcpu_events().exception
    assert (exception.nr, exception.has_error_code, exception.error_code) == (13, 1, 0)
    assert exception.injected or exception.pending
    assert guest.vcpu.run().port == 0xEE
    assert guest.vcpu.get_regs().rip in (GP_HANDLER, GP_HANDLER + 2)  # at or behind its OUT


def test_a_queued_gp_can_be_carried_to_another_vcpu(guest, kvm):
    stop_at_read(guest).fault()
    guest.vcpu.complete_pending()
    other = Guest(kvm)
    other.put(CODE, RDMSR + DONE)
    other.vcpu.set_sregs(guest.vcpu.get_sregs())
    other.vcpu.set_regs(guest.vcpu.get_regs())
    events = guest.vcpu.get_vcpu_events()
    # KVM leaves a pending one to the payload capability; as injected it is carried without.
    events.exception.injected, events.exception.pending = 1, 0
    events.flags &= ~EventFlag.PAYLOAD
    other.vcpu.set_vcpu_events(events)
    assert other.vcpu.run().port == 0xEE
    other.close()


def test_complete_pending_with_nothing_pending_does_nothing(guest):
    guest.load(DONE)
    assert guest.vcpu.complete_pending() is None
    assert guest.vcpu.get_regs().rip == CODE
    assert guest.vcpu.run().port == 0xE9


def test_the_answer_counts_once(guest):
    exit_ = stop_at_read(guest)
    exit_.answer(7)
    guest.vcpu.complete_pending()
    guest.vcpu._pending.msr.data = 99  # what an unaware VMM might do
    guest.vcpu.run()
    assert guest.vcpu.get_regs().rax == 7


def test_a_kick_is_not_lost_in_complete_pending(guest):
    exit_ = stop_at_read(guest, LOOP)
    exit_.answer(1)
    guest.vcpu.kick()
    assert guest.vcpu.complete_pending() is None
    watchdog = threading.Timer(5, guest.vcpu.kick)
    watchdog.start()
    assert isinstance(guest.vcpu.run(), Interrupted)
    assert watchdog.is_alive(), "the kick was lost: only the watchdog ended the loop"
    watchdog.cancel()


def test_an_interrupted_run_leaves_no_trace_of_the_access(guest):
    exit_ = stop_at_read(guest, LOOP)
    exit_.answer(1)
    guest.vcpu.kick()
    # exit_reason still says RDMSR: what counts is that KVM_RUN was interrupted.
    assert isinstance(guest.vcpu.run(), Interrupted)
    assert guest.vcpu.get_regs().rip == CODE + len(RDMSR)


# The filter and the mask


def deny(index, flags=MsrFilterFlag.READ | MsrFilterFlag.WRITE):
    return MsrFilterRange(index, 1, flags, b"\0")


def test_a_filtered_msr_that_kvm_knows_comes_over(guest):
    own = guest.vcpu.get_msrs([0x277])[0x277]
    guest.vm.set_msr_filter([deny(0x277)])
    guest.load(RDMSR + DONE, rcx=0x277)
    exit_ = guest.vcpu.run()
    assert exit_.reason is MsrExitReason.FILTER
    exit_.answer(0x1122334455667788)
    guest.vcpu.run()
    regs = guest.vcpu.get_regs()
    assert regs.rdx << 32 | regs.rax == 0x1122334455667788
    assert guest.vcpu.get_msrs([0x277])[0x277] == own
    guest.vm.set_msr_filter()
    guest.load(RDMSR + DONE, rcx=0x277)
    assert guest.vcpu.run().port == 0xE9


def test_msr_0_is_an_msr_like_any_other(guest):
    guest.vm.set_msr_filter([deny(0)])
    guest.load(RDMSR + DONE, rcx=0)
    exit_ = guest.vcpu.run()
    assert (exit_.index, exit_.reason) == (0, MsrExitReason.FILTER)
    exit_.fault()


def test_the_mask_is_replaced(guest):
    guest.vm.enable_user_space_msr(MsrExitReason.FILTER)
    guest.load(RDMSR + DONE, rcx=MSR)
    assert guest.vcpu.run().port == 0xEE


@pytest.mark.parametrize(
    ("ranges", "options", "piece"),
    [
        ([deny(n) for n in range(17)], {}, "16 at most"),
        ([], {"default_deny": True}, "needs a range"),
        ([MsrFilterRange(0, 0x3001, MsrFilterFlag.READ, b"")], {}, "1 to 0x3000"),
        ([MsrFilterRange(0, 0, MsrFilterFlag.READ, b"")], {}, "1 to 0x3000"),
        ([MsrFilterRange(0, 1, MsrFilterFlag(0), b"")], {}, "READ, WRITE or both"),
        ([deny(0xFFFFFFFF)], {}, "never apply it"),
    ],
)
def test_filters_that_kvm_does_not_take_or_mean_are_refused(guest, ranges, options, piece):
    with pytest.raises(UsageError, match=piece):
        guest.vm.set_msr_filter(ranges, **options)


def test_the_largest_filter_is_taken(guest):
    flags = MsrFilterFlag.READ
    ranges = [MsrFilterRange(n << 16, 0x3000, flags, b"\xff" * 0x600) for n in range(16)]
    guest.vm.set_msr_filter(ranges, default_deny=True)
    guest.load(RDMSR + DONE, rcx=0x277)
    assert guest.vcpu.run().port == 0xE9


@pytest.mark.parametrize("value", [1.5, "7", None])
def test_what_is_no_number_is_no_answer(guest, value):
    exit_ = stop_at_read(guest)
    with pytest.raises(TypeError):
        exit_.answer(value)
    with pytest.raises(ExitUnansweredError):
        guest.vcpu.run()
    exit_.answer(5)
    assert isinstance(guest.vcpu.run(), IoOut)


class _Alarm(Exception):
    pass


@pytest.mark.kvm
def test_no_access_is_lost_to_a_signal_handler_that_raises(host):
    """A handler may raise between KVM_RUN and the line that reads its exit: 3,000 tries."""
    guest = Guest(Kvm(host))
    guest.load(b"\x66\xff\xc3" + RDMSR + b"\x66\x39\xd8\x74\xf6" + b"\xe6\xee", rcx=MSR)
    vcpu, alarms, wanted = guest.vcpu, 0, 0

    def strike(*_):
        raise _Alarm

    former = signal.signal(signal.SIGALRM, strike)
    deadline = time.monotonic() + 60
    try:
        while alarms < 3000 and time.monotonic() < deadline:
            try:
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + alarms % 97 * 1e-6)
                while True:
                    exit_ = vcpu.unanswered or vcpu.run()
                    if isinstance(exit_, Interrupted):
                        continue
                    assert isinstance(exit_, Rdmsr), f"the guest read 0 after {wanted} reads"
                    wanted = guest.vcpu.get_regs().rbx & 0xFFFFFFFF
                    exit_.answer(wanted)
            except _Alarm:
                alarms += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert wanted > 100
    guest.close()


def test_an_exit_that_was_not_read_comes_again(guest):
    guest.load(RDMSR + DONE, rcx=MSR)
    guest.vcpu.backend.ioctl(guest.vcpu.fd, ioctls.KVM_RUN)  # as if an exception had come here
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, Rdmsr)
    with pytest.raises(ExitUnansweredError):
        guest.vcpu.complete_pending()
    exit_.answer(0x77)
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.get_regs().rax == 0x77


def test_a_closed_vcpu_says_so(guest):
    guest.vcpu.close()
    for use in (
        guest.vcpu.run,
        guest.vcpu.complete_pending,
        guest.vcpu.get_regs,
        lambda: guest.vcpu.sync_regs,
        lambda: guest.vcpu.valid_regs,
        lambda: setattr(guest.vcpu, "cr8", 1),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()
    guest.vcpu.kick()
    guest.vcpu.close()
