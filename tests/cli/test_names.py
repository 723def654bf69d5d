"""The names of an MSR that is another one on other CPUs."""

import json
import os
import re

import pytest
from click.testing import CliRunner

from kvmsr.cli import cli
from kvmsr.errors import PolicyError
from kvmsr.msr import Cpu, catalog, find_cpu
from kvmsr.policy import Op, Policy, Rule
from kvmsr.policy.plan import compile_policy
from kvmsr.policy.selector import parse_msrs
from kvmsr.trace.file import Head
from tests.command import kvmsr
from tests.trace.file.made import events, trace

INDEX = 0x690
USUAL = "MSR_LASTBRANCH_16_FROM_IP"  # the first meaning: Skylake's, and others'
OTHER = "MSR_CORE_PERF_LIMIT_REASONS"  # Haswell's


def call(*words):
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_all_meanings_are_shown_or_the_one_of_a_cpu():
    every = call("msr", f"{INDEX:#x}")
    assert every.index(f"0x690 {USUAL}") < every.index(f"0x690 {OTHER}")
    assert re.search(r"of +haswell", every)
    assert f"0x690 {OTHER}" in call("msr", USUAL, "--cpu", "haswell")
    assert OTHER not in call("msr", USUAL, "--cpu", "skylake")
    rows = json.loads(call("msr", "0x690", "--json"))
    there = next(row["cpus"] for row in rows if row["name"] == OTHER)
    assert set(json_cpus("haswell")) <= set(there)
    assert USUAL not in call("msr", "MSR_CORE_PERF_LIM*")
    nowhere = call("msr", "0x690", "--cpu", "zen4")
    assert nowhere.startswith("0x690 has no name on zen4; on ")
    assert f": {OTHER}" in nowhere


def json_cpus(name):
    rows = json.loads(call("msr", "--cpus", "--json"))
    return next(row["cpus"] for row in rows if row["name"] == name)


def test_a_policy_may_name_any_meaning():
    ranges = ((INDEX, INDEX),)
    for name in (USUAL, OTHER, OTHER.lower(), "CORE_PERF_LIMIT_REASONS", "MSR_CORE_PERF_LIM*"):
        assert parse_msrs(name) == ranges
    with pytest.raises(PolicyError, match=f"did you mean {OTHER}"):
        parse_msrs(OTHER.replace("REASONS", "RAESONS"))
    both = Policy([Rule([USUAL, OTHER], read=1), Rule("MSR_CORE_PERF_LIM*", read="fault")])
    segment = compile_policy(both).segment(Op.READ, INDEX)
    assert (segment.first, segment.last, segment.rules) == (INDEX, INDEX, (both.rules[0],))


def test_a_policy_is_explained_by_the_name_that_it_has_or_the_cpus(tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text(f'[[rule]]\nmsr = "{OTHER}"\nread = {{ value = 1 }}\n')
    assert f"MSR 0x690 ({OTHER})" in call("policy", "explain", "0x690", "--policy", policy)
    explained = call("policy", "explain", "0x690", "--policy", policy, "--cpu", "skylake")
    assert f"MSR 0x690 ({USUAL})" in explained
    assert OTHER in call("policy", "show", policy)
    assert USUAL in call("policy", "show", policy, "--cpu", "skylake")
    assert f"MSR 0x690 ({USUAL})" in call("policy", "explain", "0x690")
    assert f"MSR 0x690 ({OTHER})" in call("policy", "explain", "0x690", "--cpu", "haswell")
    assert catalog().cpu is None  # which the next command would speak of


def test_the_catalog_speaks_of_a_cpu():
    known = catalog()
    try:
        known.cpu = find_cpu("haswell")
        assert known.name(INDEX) == known[INDEX].name == known.get(INDEX).name == OTHER
        assert known.name(0x1C9)  # another CPU's name is better than none
        assert known.get(INDEX, find_cpu("skylake")).name == USUAL
        assert known.get(INDEX, find_cpu("zen4")) is None
    finally:
        known.cpu = None
    assert known.name(INDEX) == USUAL


def test_a_trace_says_which_cpu_its_guest_has():
    leaves = [(0, 0, 0xD, 0x756E6547, 0x6C65746E, 0x49656E69), (1, 0, 0x806F8, 0, 0, 0)]
    head = Head.decoded(Head(cpuid=leaves).encoded())
    assert head.guest_cpu == Cpu("intel", 6, 0x8F, 8)
    assert Head.decoded(Head(cpu="amd:19_11.1").encoded()).guest_cpu == Cpu("amd", 0x19, 0x11, 1)
    for spec in ("intel:06_8F", "intel:06_55.7", "amd:19_01"):
        assert str(Cpu.from_text(spec)) == spec
        assert Cpu.from_text(spec) == find_cpu(spec)
    for nothing in ("", "host", "/proc/cpuinfo", "zen4"):
        assert Head(cpu=nothing).guest_cpu is None


def test_a_trace_has_the_names_of_its_guests_cpu_or_of_another(tmp_path):
    def recorded(name, count=20, **head):
        made = events(count)
        made["index"] = INDEX
        return trace(tmp_path / name, made, **head)

    letters = (0x756E6547, 0x6C65746E, 0x49656E69)
    haswell = [(0, 0, 0xD, *letters), (1, 0, 0x306C3, 0, 0, 0)]
    path, other = recorded("a", cpuid=haswell), recorded("b", 30, cpuid=haswell)
    report = tmp_path / "report.html"
    for cpu, name in (([], OTHER), (["--cpu", "skylake"], USUAL)):
        for command in ("summary", "show", "policy"):
            assert name in call("trace", command, path, *cpu)
        call("report", path, "-o", report, *cpu)
        assert name in report.read_text()
        assert (
            name in CliRunner().invoke(cli, ["trace", "diff", str(path), str(other), *cpu]).stdout
        )
    assert USUAL in call("trace", "summary", recorded("c"))
    assert OTHER in call("trace", "summary", recorded("d", cpu="intel:06_3C"))


def test_what_is_no_cpu_is_one_line():
    for words in (["policy", "explain", "0x690"], ["trace", "show", "x"], ["exec"]):
        _, err = kvmsr(*words, "--cpu", "foo", *(["--", "true"] * (words == ["exec"])), status=2)
        assert err == "kvmsr: --cpu foo: no CPU is called 'foo'; write intel:06_8F, zen4 or host\n"


@pytest.mark.parametrize(
    ("words", "completed", "not_completed"),
    [
        ("kvmsr msr --cpu sapph", "sapphire-rapids", "zen4"),
        ("kvmsr exec --cpu zen", "zen4", "haswell"),
        ("kvmsr msr MSR_K7_HW", "MSR_K7_HWCR", "IA32_PAT"),
        ("kvmsr msr --cpu zen4 MSR_LASTBR", "", "MSR_LASTBRANCH_TOS"),
        ("kvmsr msr --cpu haswell MSR_LASTBR", "MSR_LASTBRANCH_TOS", "MSR_K7_HWCR"),
        ("kvmsr msr --cp", "--cpus", "--json"),
    ],
)
def test_cpus_and_the_names_that_they_have_are_completed(words, completed, not_completed):
    given = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    out, _ = kvmsr(env=os.environ | {"_KVMSR_COMPLETE": "bash_complete"} | given)
    found = [line.partition(",")[2] for line in out.splitlines()]
    assert completed in found or not completed
    assert not_completed not in found
