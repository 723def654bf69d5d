"""Who called the function that accesses an MSR, as traces, handlers, logs and conditions see it."""

import numpy as np
import pytest

from kvmsr import Boot, Machine, native
from kvmsr import backend as backends
from kvmsr.kvm import Kvm
from kvmsr.kvm.callers import find_callers
from kvmsr.policy import Policy, Rule
from kvmsr.trace import TraceOptions
from kvmsr.trace.file import Trace
from tests.conftest import kvm_missing
from tests.harness import Guest
from tests.session.calls import LOST, POLICY, A, build, check
from tests.session.test_recording import machine


@pytest.fixture
def guest():
    with Kvm(backends.open("soft")) as kvm:
        made = Guest(kvm)
        yield made
        made.close()


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return build(tmp_path_factory.mktemp("calls"))


def run(kind, tmp_path, image, text=POLICY, **options):
    """Run the guest with a trace; return its result and the rows of the trace."""
    (tmp_path / "policy.toml").write_text(text)
    path = tmp_path / "trace"
    with machine(kind, tmp_path / "policy.toml", TraceOptions(path, **options)) as guest:
        guest.load(Boot(image, mode=16))
        result = guest.run(60)
    with Trace(path) as trace:
        return result, np.concatenate(list(trace.batches()))


def test_what_the_guest_called(kind, tmp_path, calls):
    image, places = calls
    result, rows = run(kind, tmp_path, image, callers=8)
    assert result.exit_status == 1  # isa-debug-exit: 2 * 0 + 1
    check(rows, places)


def test_c_and_python_find_the_same(tmp_path, calls):
    """Also where RSP, RBP and the stack lead nowhere."""
    if not native.available() or kvm_missing():
        pytest.skip("needs /dev/kvm and the native core")
    found = []
    for kind in ("c", "python"):
        _, rows = run(kind, tmp_path, calls[0], callers=8)
        found.append(rows[["index", "rip", "cpl", "callers", "n_callers", "guesses"]])
    assert (found[0] == found[1]).all()
    assert set(LOST) <= set(found[0]["index"].tolist())


@pytest.mark.parametrize("most", [0, 1, 3])
def test_as_many_as_are_asked_for(kind, tmp_path, calls, most):
    _, rows = run(kind, tmp_path, calls[0], rip=True, callers=most)
    if most:
        [count] = rows["n_callers"][rows["index"] == A + 1].tolist()
        assert count == most
    else:
        assert "callers" not in rows.dtype.names
    assert (rows["rip"] != 0).all()


@pytest.mark.parametrize("by_name", [True, False])
def test_a_rule_for_one_caller(kind, tmp_path, calls, by_name):
    """Two functions read the MSR by a third one. Only one of them sees what the rule says."""
    image, places = calls
    first, last = places["other_way"], places["read_35"] - 1
    caller = "other_way" if by_name else f"{first:#x}-{last:#x}"
    (tmp_path / "System.map").write_text(
        "".join(f"{at:016x} T {name}\n" for name, at in places.items() if "after" not in name)
    )
    policy = f"""
[policy]
{'symbols = "System.map"' if by_name else ""}
[[rule]]
msr = 0x35
read = {{ value = 7 }}
when = {{ caller = "{caller}" }}
{POLICY}"""
    result, rows = run(kind, tmp_path, image, policy)
    assert rows["value"][rows["index"] == 0x35].tolist() == [1, 7]
    by_rule = {row.rule: row.values for row in result.summary if row.index == 0x35}
    assert sorted(by_rule.values()) == [1, 1]


def test_what_handlers_and_the_log_see(kind, tmp_path, calls):
    image, places = calls
    seen, lines = [], []

    def answer(access):
        seen.append((access.rip, access.callers))
        return 5

    others = Rule([0x35, f"{A:#x}-{A + 0xFF:#x}"], read=1)
    policy = Policy([Rule(A + 3, read=answer, log="always"), others])
    for trace in (None, TraceOptions(tmp_path / "trace", callers=2)):
        with Machine(
            "soft" if kind == "soft" else "kvm", policy=policy, native=kind == "c", memory="16M",
            trace=trace, log=lambda access, outcome, text: lines.append(text),
        ) as guest:  # fmt: skip
            guest.load(Boot(image, mode=16))
            guest.run(60)
    [bare, (rip, callers)] = seen
    assert bare == (None, ())
    assert callers == (places["after_bare_leaf"], places["after_bare_middle"])
    assert places["bare_leaf"] < rip < places["noise"]
    logged = [line for line in lines if f"{A + 3:#x}" in line]
    assert " at " not in logged[0]
    assert logged[1].endswith(f" at {rip:#x} ← {callers[0]:#x} ← {callers[1]:#x}?")


def test_page_tables_that_lead_nowhere(guest):
    """RSP is where nothing is, and the page tables are not in memory."""
    guest.load(b"\x90")
    sregs = guest.vcpu.get_sregs()
    sregs.cs.l = 1
    for cr3 in (0x7FFF_F000, 0, 0xFEE0_0000, (1 << 51) + 0x1000):
        sregs.cr3, sregs.cr0, sregs.cr4 = cr3, 0x8000_0011, 0x20
        regs = guest.vcpu.get_regs()
        for rsp in (0, 0x8000, (2 << 20) - 8, 1 << 63, (1 << 64) - 8):
            regs.rsp = regs.rbp = rsp
            assert find_callers(guest.vcpu, guest.vm, regs, sregs) == ((), 0)
