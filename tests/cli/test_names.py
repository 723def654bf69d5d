"""The names of an MSR that is another one on other CPUs."""

import json
import os

import msgspec
import pytest
from click.testing import CliRunner

from kvmsr.cli import cli
from kvmsr.errors import PolicyError
from kvmsr.msr import Cpu, Msr, catalog, find_cpu
from kvmsr.msr.catalog import _Row
from kvmsr.policy import Op, Policy, Rule
from kvmsr.policy.plan import compile_policy
from kvmsr.policy.selector import parse_msrs
from kvmsr.trace.file import Head
from tests.command import kvmsr
from tests.trace.file.made import events, trace

INDEX = 0x35
USUAL, OTHER = "MSR_CORE_THREAD_COUNT", "MSR_OF_ZEN4_ALONE"


@pytest.fixture
def two_meanings():
    """MSR 0x35 is another one on Zen 4, for all that this process prints."""
    entry = Msr(INDEX, OTHER, ("MSR_ALIAS_OF_ZEN4",), ("amd",), ("zen4",), "Known on Zen 4 only.")
    row = _Row(INDEX, (entry.name, *entry.aliases), msgspec.Raw(msgspec.json.encode(entry)))
    known = catalog()
    known._by_index[INDEX].append(row)
    known._by_name |= {name.lower(): row for name in row.names}
    yield
    known._by_index[INDEX].remove(row)
    for name in row.names:
        del known._by_name[name.lower()]


def call(*words):
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.usefixtures("two_meanings")
def test_both_meanings_are_shown_or_the_one_of_a_cpu():
    both = call("msr", f"{INDEX:#x}")
    assert both.index(f"0x35 {USUAL}") < both.index(f"0x35 {OTHER}")
    assert "of        zen4" in both
    assert f"0x35 {OTHER}" in call("msr", USUAL, "--cpu", "zen4")
    assert OTHER not in call("msr", USUAL, "--cpu", "sapphire-rapids")
    here, there = json.loads(call("msr", "0x35", "--json"))
    assert there["cpus"] == json_cpus("zen4")
    assert "intel:06_97" in here["cpus"]
    assert call("msr", "*ZEN4_AL*").startswith(f"0x35 {OTHER}")  # not the other meaning
    assert f"on zen4: {OTHER}" in call("msr", "0x35", "--cpu", "zen3")


def json_cpus(name):
    rows = json.loads(call("msr", "--cpus", "--json"))
    return next(row["cpus"] for row in rows if row["name"] == name)


@pytest.mark.usefixtures("two_meanings")
def test_a_policy_may_name_either_meaning():
    ranges = ((INDEX, INDEX),)
    for name in (USUAL, OTHER, OTHER.lower(), "MSR_ALIAS_OF_ZEN4", "MSR_OF_ZEN4_*"):
        assert parse_msrs(name) == ranges
    with pytest.raises(PolicyError, match=f"did you mean {OTHER}"):
        parse_msrs(OTHER.replace("ALONE", "ALNE"))
    both = Policy([Rule([USUAL, OTHER], read=1), Rule("MSR_OF_ZEN4*", read="fault")])
    (segment,) = [s for s in [compile_policy(both).segment(Op.READ, INDEX)] if s.rules]
    assert (segment.first, segment.last, segment.rules) == (INDEX, INDEX, (both.rules[0],))


@pytest.mark.usefixtures("two_meanings")
def test_a_policy_is_explained_by_the_name_that_it_has_or_the_cpus(tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text(f'[[rule]]\nmsr = "{OTHER}"\nread = {{ value = 1 }}\n')
    assert f"MSR 0x35 ({OTHER})" in call("policy", "explain", "0x35", "--policy", policy)
    explained = call("policy", "explain", "0x35", "--policy", policy, "--cpu", "haswell")
    assert f"MSR 0x35 ({USUAL})" in explained
    assert OTHER in call("policy", "show", policy)
    assert USUAL in call("policy", "show", policy, "--cpu", "haswell")
    assert f"MSR 0x35 ({USUAL})" in call("policy", "explain", "0x35")
    assert f"MSR 0x35 ({OTHER})" in call("policy", "explain", "0x35", "--cpu", "zen4")
    assert catalog().cpu is None  # which the next command would speak of


@pytest.mark.usefixtures("two_meanings")
def test_the_catalog_speaks_of_a_cpu():
    known = catalog()
    try:
        known.cpu = find_cpu("zen4")
        assert known.name(INDEX) == known[INDEX].name == known.get(INDEX).name == OTHER
        assert known.name(0x1C9)  # another CPU's name is better than none
        assert known.get(INDEX, find_cpu("haswell")).name == USUAL
        assert known.get(INDEX, find_cpu("zen3")) is None
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


@pytest.mark.usefixtures("two_meanings")
def test_a_trace_has_the_names_of_its_guests_cpu_or_of_another(tmp_path):
    amd = [(0, 0, 0x10, 0x68747541, 0x444D4163, 0x69746E65), (1, 0, 0xA10F11, 0, 0, 0)]
    made = trace(tmp_path / "zen4", events(20), cpuid=amd)
    report = tmp_path / "report.html"
    for words in (["summary"], ["show"], ["policy"], ["report", "-o", report], ["diff", made]):
        command = words if words[0] == "report" else ["trace", *words]
        for cpu, name in ((None, OTHER), ("haswell", USUAL), ("zen3", USUAL)):
            if words[0] == "diff":
                other = trace(tmp_path / "other", events(30), cpuid=amd)
                done = CliRunner().invoke(cli, ["trace", "diff", str(made), str(other), *of(cpu)])
                assert name in done.stdout
                continue
            out = call(*command, made, *of(cpu))
            assert name in (report.read_text() if words[0] == "report" else out)
    assert USUAL in call("trace", "summary", trace(tmp_path / "exec", events(20)))
    assert OTHER in call("trace", "summary", trace(tmp_path / "e2", events(20), cpu="amd:19_11"))


def of(cpu):
    return ["--cpu", cpu] if cpu else []


def test_what_is_no_cpu_is_one_line():
    for words in (["policy", "explain", "0x35"], ["trace", "show", "x"], ["exec"]):
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
