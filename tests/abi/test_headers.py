"""KVM's numbers and layouts, compared with the C headers of this system."""

import ctypes
import subprocess

import pytest

from kvmsr import abi
from kvmsr.abi import Layout, Overlay, cpu, ioctls, run, vm
from kvmsr.backend import _kick
from tests.conftest import need

# Newer than Linux 6.1, whose headers Debian 12 has.
NEWER = {"memory_fault": "KVM_EXIT_MEMORY_FAULT"}


def structures():
    """Yield the structures that have names in C."""
    for module in (cpu, run, vm):
        for thing in vars(module).values():
            named = (
                isinstance(thing, type) and issubclass(thing, Layout) and "C_NAME" in vars(thing)
            )
            if named and thing.C_NAME.startswith("kvm_") and thing.__module__ == module.__name__:
                yield thing
    yield _kick._Sigaction


def paths(structure, prefix=""):
    """Yield the C path of each field of *structure*, with its offset and size."""
    for name, ctype in structure._fields_:
        field = getattr(structure, name)
        # The union of exits has no name in C, so it does not appear in a path.
        path = prefix if (structure, name) == (run.Run, "exit") else f"{prefix}{name}."
        if path != prefix:
            yield path[:-1], field.offset, ctypes.sizeof(ctype)
        if isinstance(ctype, type) and issubclass(ctype, (Layout, Overlay)):
            for inner, offset, size in paths(ctype, path):
                yield inner, field.offset + offset, size


PLAIN = {
    "KVM_API_VERSION": abi.KVM_API_VERSION,
    "KVM_MSR_FILTER_MAX_RANGES": abi.MSR_FILTER_MAX_RANGES,
    "KVM_MSR_FILTER_MAX_BITMAP_SIZE": abi.MSR_FILTER_MAX_BITMAP_SIZE,
    "KVM_MSR_FILTER_DEFAULT_ALLOW": abi.MSR_FILTER_DEFAULT_ALLOW,
    "KVM_MSR_FILTER_DEFAULT_DENY": abi.MSR_FILTER_DEFAULT_DENY,
    "KVM_IOAPIC_NUM_PINS": abi.NR_IOAPIC_PINS,
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX": abi.CPUID_FLAG_SIGNIFCANT_INDEX,
    "KVM_CLOCK_TSC_STABLE": abi.CLOCK_TSC_STABLE,
    "KVM_SREGS2_FLAGS_PDPTRS_VALID": abi.SREGS2_FLAGS_PDPTRS_VALID,
    "KVM_PIT_SPEAKER_DUMMY": abi.PIT_SPEAKER_DUMMY,
    "KVM_EXIT_IO_IN": abi.IO_IN,
    "KVM_EXIT_IO_OUT": abi.IO_OUT,
    "KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES": abi.EMULATION_FLAG_INSTRUCTION_BYTES,
    "KVM_PIO_PAGE_OFFSET": run.PIO_PAGE_OFFSET,
}


def facts():
    """Yield a C expression, the value it should have, and a macro that it depends on, or ""."""
    for structure in structures():
        name = f"struct {structure.C_NAME}"
        yield f"sizeof({name})", ctypes.sizeof(structure), ""
        for path, offset, size in paths(structure):
            newer = NEWER.get(path.split(".")[0], "")
            yield f"offsetof({name}, {path})", offset, newer
            yield f"sizeof((({name} *)0)->{path})", size, newer
    for number, name in ioctls.NAMES.items():
        yield name, number, name
    for kind, prefix in abi.C_PREFIX.items():
        for member in kind:
            # Some are not macros but members of a C enumeration; those are old enough to exist.
            newer = prefix + member.name if kind in (abi.Cap, abi.ExitReason) else ""
            yield prefix + member.name, int(member), newer
    for name, value in PLAIN.items():
        yield name, value, ""


def test_every_size_offset_and_number_is_that_of_the_headers(tmp_path):
    compiler = need("cc")
    includes = ("stddef.h", "stdio.h", "signal.h", "linux/kvm.h")
    source = "".join(f"#include <{name}>\n" for name in includes) + "int main(void) {\n"
    for expression, _, macro in facts():
        line = f'printf("%s=%llu\\n", "{expression}", (unsigned long long)({expression}));\n'
        source += f"#ifdef {macro}\n{line}#endif\n" if macro else line
    (tmp_path / "abi.c").write_text(source + "return 0; }\n")
    command = [compiler, "-w", "-o", tmp_path / "abi", tmp_path / "abi.c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "linux/kvm.h: No such file" in done.stderr:
        pytest.skip("needs linux/kvm.h (Debian: linux-libc-dev)")
    assert done.returncode == 0, done.stderr
    text = subprocess.run([tmp_path / "abi"], capture_output=True, text=True, check=True).stdout
    headers = dict(line.rsplit("=", 1) for line in text.splitlines())
    claimed = {expression: str(value) for expression, value, _ in facts()}
    assert {name: claimed[name] for name in headers} == headers
    assert len(headers) > 800


def test_the_filter_ioctl_has_the_number_of_the_specification():
    assert ioctls.KVM_X86_SET_MSR_FILTER == 0x4188AEC6
    assert ctypes.sizeof(run.Run) == 0x930
    assert run.Run.exit.offset == 0x20
