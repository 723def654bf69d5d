"""The C itself: it compiles without warnings, and survives nonsense in shared memory."""

import random
import re
import subprocess
from pathlib import Path

import pytest

from kvmsr import native
from kvmsr.policy import Policy, Rule
from kvmsr.policy.plan import compile_policy
from tests.conftest import need
from tests.test_architecture import circles

if native.available():
    from kvmsr.native import ffi, lib
    from kvmsr.native.block import Block
    from kvmsr.native.table import Names, compile_table

needs_core = pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}")

SOURCES = sorted((Path(native.__file__).parent / "c").glob("*.c"))
assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_it_compiles_without_a_warning(source):
    flags = "-std=gnu11 -O2 -Wall -Wextra -Werror -fsyntax-only".split()
    done = subprocess.run([need("cc"), *flags, source], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_no_sources_call_each_other_in_a_circle():
    """A definition is recognised by its form: the name, and an opening brace on the next line."""
    texts = {path.name: path.read_text() for path in SOURCES}
    owner = {
        name: file
        for file, text in texts.items()
        for name in re.findall(
            r"^(?!static)[^\n;(]*?\b(kvmsr_\w+)\([^;]*?\)\n\{", text, re.MULTILINE
        )
    }
    assert {"kvmsr_evaluate", "kvmsr_ioctl", "kvmsr_run", "kvmsr_new_vm"} <= set(owner)
    calls = {
        file: {owner[name] for name in re.findall(r"\b(kvmsr_\w+)\(", text) if name in owner}
        for file, text in texts.items()
    }
    assert circles({file: called - {file} for file, called in calls.items()}) == []


def table():
    rules = [
        Rule([0x35, "0x100-0x1ff"], read=5, write="shadow", bits={"0": "lock"}),
        Rule(0x36, read="ignore", when={"vcpu": [0, 1], "after": 2}),
        Rule(0x277, read=1, when={"rip": "0x1000-0x2000"}),
    ]
    return compile_table(compile_policy(Policy(rules)), Names(), logs=True)


@needs_core
def test_a_broken_table_is_refused_or_harmless():
    """Any bytes that pass the check can be evaluated. An access outside the table would crash."""
    whole = table()
    chance = random.Random(5)
    refused = 0
    with Block(1) as block:
        cpu = block.new_cpu(0, 0)
        cpu.fd = -1
        outcome = ffi.addressof(cpu, "outcome")
        for _ in range(20_000):
            data = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                place = chance.randrange(0, min(len(data), 1200))
                data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
            raw = ffi.cast("struct kvmsr_table *", ffi.from_buffer(data))
            if lib.kvmsr_table_check(raw, len(data)):
                refused += 1
                continue
            for index in (0, 0x35, 0x36, 0x150, 0x277, 0xFFFFFFFF):
                for op in range(2):
                    access = ffi.new("struct kvmsr_access *", (7, 0, index, op, 2, 0))
                    lib.kvmsr_evaluate(cpu, raw, access, outcome)
    assert refused > 1000


@needs_core
def test_a_table_that_is_cut_off_anywhere_is_refused():
    whole = table()
    for length in range(0, len(whole), 8):
        data = ffi.new("char[]", whole[:length] or b"\0")
        assert lib.kvmsr_table_check(ffi.cast("struct kvmsr_table *", data), length)


@needs_core
def test_vcpu_counts_that_another_process_wrote_lead_nowhere():
    with Block(2) as block:
        block.new_cpu(0, 0)
        block.raw.n_vcpus = (1 << 32) - 1
        assert [(vcpu.vm, vcpu.id) for vcpu in block.vcpus()] == [(0, 0)]


@needs_core
def test_a_vm_cannot_use_up_anothers_shadows():
    with Block(1) as block:
        one, two = (block.vm(block.take_vm()) for _ in range(2))
        written = [lib.kvmsr_shadow_write(one, 1 << 63 | index, 5, 0) for index in range(70_000)]
        assert sum(written) == lib.KVMSR_SHADOW_LIMIT
        assert one.refused == 70_000 - lib.KVMSR_SHADOW_LIMIT
        assert lib.kvmsr_shadow_write(two, 1 << 63 | 7, 6, 0)
        assert lib.kvmsr_shadow_read(two, 1 << 63 | 7, 0) == 6
        assert lib.kvmsr_shadow_read(one, 1 << 63 | 7, 0) == 5


@needs_core
def test_a_shadow_that_stays_locked_stops_nobody():
    """Its process was killed while it changed the shadow, or it writes nonsense."""
    with Block(1) as block:
        vm = block.vm(block.take_vm())
        for index in range(3):
            lib.kvmsr_shadow_write(vm, 1 << 63 | index, 5, 0)
        for shadow in vm.shadows:
            if shadow.key:
                shadow.state |= lib.KVMSR_BUSY
        assert lib.kvmsr_shadow_write(vm, 1 << 63, 6, 0)
        assert lib.kvmsr_shadow_read(vm, 1 << 63, 0) == 6
        lib.kvmsr_reset(vm, 1)
        assert [lib.kvmsr_shadow_read(vm, 1 << 63 | index, 9) for index in range(3)] == [9, 9, 9]


@needs_core
def test_numbers_of_vms_are_reused_and_begin_anew():
    with Block(1) as block:
        numbers = [block.take_vm() for _ in range(lib.KVMSR_MAX_VMS)]
        assert numbers == list(range(lib.KVMSR_MAX_VMS))
        lib.kvmsr_shadow_write(block.vm(5), 1 << 63, 6, 0)
        lib.kvmsr_counters(block.vm(5), 1)[3] = 7
        assert lib.kvmsr_take_vm(block.raw, b"") == lib.KVMSR_MAX_VMS
        lib.kvmsr_free_vm(block.vm(5))
        assert lib.kvmsr_shadow_read(block.vm(5), 1 << 63, 0) == 6  # it may still be saved
        assert block.take_vm() == 5
        assert lib.kvmsr_shadow_read(block.vm(5), 1 << 63, 0) == 0
        assert lib.kvmsr_counters(block.vm(5), 1)[3] == 0
        assert block.vm(5).serial == 2
