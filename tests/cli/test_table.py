"""What people read at the end of a run."""

import io

import pytest

from kvmsr.cli._table import print_result
from kvmsr.dispatch import HandlerFailure, Outcome, Verdict
from kvmsr.policy import Access, Op, Reason
from kvmsr.session import End, EndKind, RunResult
from kvmsr.trace import Summary

QEMU = "qemu-system-x86_64 -device isa-debug-exit,iobase=0xf4 -kernel x"
DEBUG_EXIT = End(EndKind.DEBUG_EXIT, 1, "the guest wrote 0x0")


def shown(end, *, image="x", indices=(0x35,), failures=0, rows=4096):
    summary = Summary(rows)
    for index in indices:
        access = Access(0, Op.READ, index, 0, Reason.UNKNOWN)
        summary.record(access, Outcome(Verdict.VALUE, "rule[0]", 1))
    failed = [HandlerFailure("f", "rule[0]", access, "no", "")] * min(failures, 1)
    result = RunResult(
        "soft", image, "", end, summary, 1.5, failures=tuple(failed), failure_count=failures
    )
    file = io.StringIO()
    print_result(result, file)
    return file.getvalue().splitlines()


def test_counts_are_in_the_right_number():
    lines = shown(DEBUG_EXIT)
    assert "1 read, 0 writes, 0 faults in 1.50 s on soft" in lines
    lines = shown(DEBUG_EXIT, indices=[0x35, 0x36], rows=1)
    assert "2 reads, 0 writes, 0 faults in 1.50 s on soft" in lines
    assert "… and 1 access to 1 other MSR" in lines
    assert "… and 1 more handler failure" in shown(DEBUG_EXIT, failures=2)
    assert "… and 2 more handler failures" in shown(DEBUG_EXIT, failures=3)


@pytest.mark.parametrize(
    ("end", "image", "line"),
    [
        (
            DEBUG_EXIT, "x",
            "debug-exit: the guest wrote 0x0 (exit status 1: a debug exit with v gives 2v+1)",
        ),
        (
            End(EndKind.VMM, 1, "qemu ended with status 1"), QEMU,
            "vmm: qemu ended with status 1 (exit status 1: a debug exit with v gives 2v+1)",
        ),
        (
            End(EndKind.VMM, 1, "qemu ended with status 1"), "qemu-system-x86_64",
            "vmm: qemu ended with status 1 (exit status 1)",
        ),
        (End(EndKind.HALT, 0, "the guest halted"), "x", "halt: the guest halted (exit status 0)"),
    ],
)  # fmt: skip
def test_the_last_line_does_not_alarm_where_a_guest_ended_well(end, image, line):
    assert shown(end, image=image)[-1] == line


def test_the_last_line_says_that_a_handler_failed():
    [*_, line] = shown(DEBUG_EXIT, failures=1)
    assert line == "debug-exit: the guest wrote 0x0 (exit status 6: a handler failed)"
