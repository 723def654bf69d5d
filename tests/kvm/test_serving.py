"""Exits that are answered on the spot: the same as between two runs, on every backend."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from kvmsr.abi import SyncReg
from kvmsr.errors import ExitUnansweredError, UsageError
from kvmsr.kvm.exits import Interrupted, IoIn, IoOut, Rdmsr, Wrmsr
from tests.harness import CODE, MSR

RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"
DONE = b"\xe6\xe9"  # out %al, $0xe9
AGAIN = RDMSR + b"\xeb\xfc"  # 1: rdmsr; jmp 1b


@pytest.fixture(params=["main thread", "another thread"])
def run(request, guest):
    """Return the vCPU's run: in the main thread signals end it, so the soft backend leaves it."""
    if request.param == "main thread":
        yield guest.vcpu.run
        return
    with ThreadPoolExecutor(1) as pool:
        yield lambda answer=None: pool.submit(guest.vcpu.run, answer).result(60)


def load(guest, code, **registers):
    guest.load(code, rcx=MSR, rax=0x1111, rdx=0x2222, **registers)


def serves(function):
    """Return a serve of MSR exits, which does what *function* does."""

    def serve(exit_):
        if not isinstance(exit_, (Rdmsr, Wrmsr)):
            return False
        function(exit_)
        return True

    return serve


def test_reads_and_writes_are_answered_and_the_guest_goes_on(guest, run):
    load(guest, RDMSR + b"\x66\x40" + WRMSR + RDMSR + DONE)  # rdmsr; inc %eax; wrmsr; rdmsr
    asked = []

    @serves
    def answer(exit_):
        asked.append(exit_)
        if isinstance(exit_, Rdmsr):
            exit_.answer(0x7_0000_0008 + len(asked))
        else:
            exit_.done()

    exit_ = run(answer)
    assert isinstance(exit_, IoOut)
    assert [type(each) for each in asked] == [Rdmsr, Wrmsr, Rdmsr]
    assert asked[1].value == 0x7_0000_000A
    regs = guest.vcpu.get_regs()
    assert (regs.rax & 0xFFFF_FFFF, regs.rdx & 0xFFFF_FFFF) == (0xB, 7)


def test_a_fault_is_one(guest, run):
    load(guest, RDMSR + DONE)
    assert run(serves(lambda exit_: exit_.fault())).port == 0xEE
    assert guest.vcpu.get_regs().rax == 0x1111


def test_whoever_answers_sees_the_state_before_the_instruction(guest, run):
    load(guest, b"\x90" + RDMSR + DONE)
    seen = []

    @serves
    def answer(exit_):
        seen.append(guest.vcpu.get_regs())
        exit_.answer(5)

    run(answer)
    assert [(regs.rip, regs.rax, regs.rdx, regs.rflags) for regs in seen] == [
        (CODE + 1, 0x1111, 0x2222, 2)
    ]


def test_no_answer_is_no_consent(guest, run):
    load(guest, RDMSR + DONE)
    with pytest.raises(ExitUnansweredError):
        run(lambda exit_: True)
    guest.vcpu.unanswered.answer(3)
    assert isinstance(run(), IoOut)
    assert guest.vcpu.get_regs().rax & 0xFFFF_FFFF == 3


@pytest.mark.parametrize("error", [ValueError("x"), OSError(4, "EINTR"), KeyboardInterrupt()])
def test_what_is_raised_comes_out_and_the_exit_still_waits(guest, run, error):
    load(guest, RDMSR + DONE)

    @serves
    def answer(exit_):
        raise error

    with pytest.raises(type(error)) as raised:
        run(answer)
    assert raised.value is error
    assert guest.vcpu.get_regs().rip == CODE
    guest.vcpu.unanswered.answer(3)
    assert isinstance(run(answer), IoOut)
    assert guest.vcpu.get_regs().rax & 0xFFFF_FFFF == 3


def test_nobody_runs_the_vcpu_in_between(guest, run):
    load(guest, RDMSR + DONE)
    refused = []

    @serves
    def answer(exit_):
        exit_.answer(1)
        with pytest.raises(UsageError) as raised:
            guest.vcpu.run()
        refused.append(str(raised.value))

    assert isinstance(run(answer), IoOut)
    assert refused == ["vCPU 0 has an exit being served; it cannot run now"]


def test_a_kick_ends_it_and_the_instruction_is_over(guest, run):
    load(guest, AGAIN)
    count = 0

    @serves
    def answer(exit_):
        nonlocal count
        count += 1
        exit_.answer(count)
        if count == 1000:
            guest.vcpu.kick()

    assert isinstance(run(answer), Interrupted)
    guest.vcpu.complete_pending()
    assert count == 1000
    assert guest.vcpu.get_regs().rax & 0xFFFF_FFFF == 1000


def test_registers_in_the_page_are_those_of_each_exit(guest, run):
    load(guest, RDMSR + RDMSR + DONE)
    guest.vcpu.valid_regs = SyncReg.REGS
    seen = []

    @serves
    def answer(exit_):
        seen.append(guest.vcpu.sync_regs.regs.rip)
        exit_.answer(1)

    run(answer)
    assert seen == [CODE, CODE + 2]


IN, OUT = b"\xe4\x60", b"\xe6\xe0"


def test_ports_are_served_too(guest, run):
    load(
        guest, IN + OUT + RDMSR + b"\x6e" + b"\x66" + IN.replace(b"\xe4", b"\xe5") + DONE, rsi=CODE
    )
    seen = []

    def serve(exit_):
        if isinstance(exit_, Rdmsr):
            exit_.answer(1)
        elif isinstance(exit_, IoIn):
            exit_.data[:] = bytes(range(0x70, 0x70 + len(exit_.data)))
        elif exit_.port == 0xE9:
            return False
        seen.append((type(exit_).__name__, bytes(getattr(exit_, "data", b""))))
        return True

    exit_ = run(serve)
    assert isinstance(exit_, IoOut)
    assert seen == [
        ("IoIn", b"\x70"),
        ("IoOut", b"\x70"),
        ("Rdmsr", b""),
        ("IoOut", IN[:1]),
        ("IoIn", b"\x70\x71\x72\x73"),
    ]
    assert guest.vcpu.get_regs().rax & 0xFFFF_FFFF == 0x7372_7170


def test_what_is_declined_is_returned_once(guest, run):
    load(guest, RDMSR + IN + DONE)
    seen = []

    def serve(exit_):
        seen.append(type(exit_))
        return False

    exit_ = run(serve)
    exit_.answer(0x1234)
    exit_ = run(serve)
    assert isinstance(exit_, IoIn)
    exit_.data[:] = b"\x56"
    assert isinstance(run(serve), IoOut)
    assert seen == [Rdmsr, IoIn, IoOut]
    assert guest.vcpu.get_regs().rax & 0xFFFF == 0x1256


def test_what_is_raised_at_a_port_comes_out(guest, run):
    load(guest, OUT + DONE)

    def serve(exit_):
        raise BrokenPipeError(32, "EPIPE")

    with pytest.raises(BrokenPipeError):
        run(serve)
    assert guest.vcpu.get_regs().rip in (CODE, CODE + 2)
    assert isinstance(run(), IoOut)
