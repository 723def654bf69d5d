"""VMM and guest of storm.c and storm.S under ``kvmsr exec``, and what they must have counted."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from tests.command import words_of
from tests.conftest import ROOT, need

HERE = ROOT / "tests/attach"
PER_ROUND = 52  # accesses
VCPUS = 2
KINDS = {  # as in storm.S, in the order of its counts: MSR and direction
    "constant": (0x474F4F01, "read"),
    "known": (0x277, "read"),
    "written": (0x474F4F02, "write"),
    "shadow": (0x474F4F02, "read"),
    "sequence": (0x474F4F03, "read"),
    "raises": (0x474F4F04, "read"),
    "nonsense": (0x474F4F05, "read"),
    "numbered": (0x474F4F06, "write"),
    "sleeps": (0x474F4F07, "read"),
}
FAILING = {"raises", "nonsense"}
RULES = {
    "[0x474f4f01, 0x277]": "read = { value = 0x5a5a00001234 }",
    "0x474f4f02": 'read = "shadow"\nwrite = "shadow"',
}
ASKING = {
    "0x474f4f03": 'read = { python = "handlers:up" }',
    "0x474f4f04": 'read = { python = "handlers:raises" }',
    "0x474f4f05": 'read = { python = "handlers:nonsense" }',
    "0x474f4f06": 'write = { python = "handlers:numbered" }',
    "0x474f4f07": 'read = { python = "handlers:slow" }',
}
HANDLERS = """
import itertools
import sys
import time

# Policies are replaced, and each loads this module anew: the counts stay.
counts = sys.__dict__.setdefault("storm_counts", {})
wrong = itertools.cycle([None, "1", -1, 1 << 64, 1.5, [1]])

def up(access):
    key = access.vcpu, access.index
    counts[key] = counts.get(key, 0) + 1
    return 0x600D << 32 | counts[key]

def raises(access):
    raise ValueError("no")

def nonsense(access):
    return next(wrong)

def numbered(access):
    key = access.vcpu, access.index
    if access.value != counts.get(key, 0) + 1:
        raise ValueError(f"{access.value} after {counts.get(key, 0)}")
    counts[key] = access.value

def slow(access):
    time.sleep(0.001)
    return up(access)
"""


def policy(rules):
    return "".join(f'[[rule]]\nmsr = {msr}\n{text}\nlog = "never"\n' for msr, text in rules.items())


def build(folder):
    """Build VMM and guest, and return the words that start them."""
    built = folder / "storm"
    subprocess.run(
        [need("cc"), "-O2", "-Wall", "-pthread", "-o", built, HERE / "storm.c"], check=True
    )
    subprocess.run([need("as"), "--32", "-o", folder / "storm.o", HERE / "storm.S"], check=True)
    flat = "-m elf_i386 --oformat binary -Ttext 0x7c00 -e _start".split()
    image = folder / "storm.bin"
    subprocess.run([need("ld"), *flat, "-o", image, folder / "storm.o"], check=True)
    return [built, image]


def write_policies(folder, rules=RULES | ASKING):
    """Write a policy and another one, whose constants differ and which has more of a filter."""
    (folder / "handlers.py").write_text(HANDLERS)
    text = policy(rules)
    (folder / "one.toml").write_text(text)
    more = policy({'"0xc0000080-0xc0000084"': 'read = "kernel"\nwrite = "kernel"'})
    (folder / "other.toml").write_text(more + text.replace("1234", "4321"))


def command(folder, *vmm):
    summary = folder / "summary.json"
    words = ["--policy", folder / "one.toml", "--json", "--summary", summary]
    return words_of("exec", *words, "--", *vmm)


class Counted:
    """What one vCPU's guest has counted."""

    def __init__(self, line):
        numbers = list(map(int, line.split()))
        self.left, self.bad, *self.first_bad = numbers[:5]
        self.gone = numbers[6]
        self.counts = dict(zip(KINDS, numbers[7:], strict=False))
        self.kicks = numbers[-1]


def has_result(folder):
    """Return whether all guests have ended."""
    path = folder / "result"
    return path.exists() and path.read_text().count("\n") == VCPUS


def counted(folder):
    return [Counted(line) for line in (folder / "result").read_text().splitlines()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def assert_same(folder, vcpus):
    """Assert that kvmsr has counted what the guests have, and return the summary."""
    report = summary(folder)
    seen = Counter()
    for row in report["accesses"]:
        seen[int(row["index"], 16), row["op"]] += row["count"]
    assert "other" not in report
    for kind, key in KINDS.items():
        assert seen[key] == sum(vcpu.counts[kind] for vcpu in vcpus), kind
    return report


def children(pid):
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descendants(pid):
    """Return the processes below *pid*, the nearest first."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def marked(mark):
    """Return the processes whose environment has *mark*."""
    found = []
    for path in Path("/proc").glob("[1-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            pass
    return [pid for pid in found if pid != os.getpid()]


def status(pid, *keys):
    """Return fields of a process's status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return [int(found[key].split()[0]) << 10 for key in keys]
