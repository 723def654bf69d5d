"""Conditions in a guest: on RIP, and asking KVM when a condition fails."""

from kvmsr.policy import Policy, Rule
from tests.harness import machine_with

RDMSR = b"\x0f\x32"


def mov_ecx(index):
    return b"\x66\xb9" + index.to_bytes(4, "little")


def run(backend, tmp_path, code, policy, **options):
    logged = []
    options["log"] = lambda access, outcome, line: logged.append(line)
    with machine_with(tmp_path, code + b"\xe6\xf4", policy, backend, **options) as machine:
        before = machine.vcpus[0].get_msrs([0x174])[0x174]
        result = machine.run(timeout=30)
        after = machine.vcpus[0].get_msrs([0x174])[0x174]
    return result, logged, before, after


def values(result):
    return [(row.rule, row.first_value, row.last_value, row.count) for row in result.summary]


def test_a_rule_holds_where_the_guest_is(any_backend, tmp_path):
    code = mov_ecx(0x35) + RDMSR + b"\x90" * 64 + RDMSR
    start = 0x7C00
    policy = Policy(
        [
            Rule(0x35, read=1, when={"rip": f"0-{start + 0x20:#x}"}),
            Rule(0x35, read=2, log="always"),
        ]
    )
    result, logged, *_ = run(any_backend, tmp_path, code, policy)
    first_rips = {row.rule: row.first_rip for row in result.summary}
    assert len(first_rips) == 2
    assert first_rips["rule[1]"] - first_rips["rule[0]"] == 66
    assert logged == ["vCPU 0: read of MSR 0x35 (MSR_CORE_THREAD_COUNT): 0x2 (rule[1]; unknown)"]


def test_where_a_condition_fails_kvm_answers(any_backend, tmp_path):
    # Write 7 to SYSENTER_CS twice, read it twice: every second write and read is the policy's.
    write = b"\x66\xb8\x07\0\0\0" + b"\x66\x31\xd2" + b"\x0f\x30"
    code = mov_ecx(0x174) + RDMSR + write + RDMSR + write
    policy = Policy([Rule(0x174, read=0x55, write="ignore", when={"every": 2})])
    result, _, before, after = run(any_backend, tmp_path, code, policy)
    assert values(result) == [
        ("kernel", before, before, 1),
        ("rule[0]", 0x55, 0x55, 1),
        ("kernel", 7, 7, 1),
        ("rule[0]", 7, 7, 1),
    ]
    assert after == 7
    assert any("[kernel-write]" in note for note in result.notes)


def test_where_kvm_then_refuses_rules_that_wait_for_it_are_asked(any_backend, tmp_path):
    # A reserved value of MTRRdefType: KVM refuses it.
    write = b"\x66\xb8\x00\x10\0\0" + b"\x66\x31\xd2" + b"\x0f\x30"
    code = mov_ecx(0x2FF) + write
    policy = Policy(
        [
            Rule(0x2FF, write="stop", when={"vcpu": 1}),
            Rule(0x2FF, write="ignore", when={"reason": "invalid"}),
        ]
    )
    result, *_ = run(any_backend, tmp_path, code, policy)
    (row,) = result.summary
    assert (row.rule, row.dones, row.reason) == ("rule[1]", 1, "invalid")
