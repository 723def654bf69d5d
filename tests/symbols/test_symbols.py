"""Names for RIPs."""

import subprocess
from pathlib import Path

import pytest

from kvmsr.errors import SymbolError
from kvmsr.symbols import Symbols
from tests.conftest import need

BASE = 0xFFFFFFFF81000000
MAP = f"""\
0000000000000000 A fixed_percpu_data
{BASE:016x} T _stext
{BASE + 0x1000:016x} t native_write_msr
{BASE + 0x1020:016x} T native_read_msr
{BASE + 0x1040:016x} t init_amd
{BASE + 0x2000:016x} T entry_SYSCALL_64
{BASE + 0x300000:016x} T do_idle
{BASE + 0x800000:016x} D jiffies
{BASE + 0x10000000:016x} t in_a_module\t[kvm]
"""
SLIDE = 0x1A400000


@pytest.fixture
def symbols(tmp_path):
    (tmp_path / "System.map").write_text(MAP)
    return Symbols.read(tmp_path / "System.map")


def test_functions_of_a_map(symbols):
    assert len(symbols) == 6
    assert symbols.name(BASE + 0x1004) == "native_write_msr+0x4"
    assert symbols.name(BASE + 0x1040) == "init_amd+0x0"
    assert symbols.name(0x7C00) == ""
    assert symbols.name(BASE + 0x10000000) == ""


@pytest.mark.parametrize("slide", [0, SLIDE, -0x1000000])
def test_a_kernel_that_was_moved(symbols, slide):
    rips = [BASE + offset + slide for offset in (0x1004, 0x1008, 0x1025, 0x1044)]
    assert symbols.find_slide(rips)
    assert symbols.slide == slide
    assert symbols.name(BASE + 0x1025 + slide) == "native_read_msr+0x5"


@pytest.mark.parametrize("slide", [0, SLIDE, -0x1000000])
def test_a_kernel_that_says_where_it_is(symbols, slide):
    assert symbols.place_by_syscall(BASE + 0x2000 + slide)
    assert symbols.name(BASE + 0x300002 + slide) == "do_idle+0x2"


@pytest.mark.parametrize("lstar", [0, BASE + 0x2001, BASE + 0x2000 + (1 << 30)])
def test_an_entry_that_is_not_the_kernels(symbols, lstar):
    assert not symbols.place_by_syscall(lstar)
    assert symbols.slide == 0


def test_what_cannot_be_known(symbols):
    assert not symbols.find_slide([0x7C00, 0x7C10])
    assert not symbols.find_slide([])
    assert not symbols.find_slide([BASE + 0x1004, 1, 2, 3])


def test_an_elf_file(tmp_path):
    source, program = tmp_path / "a.c", tmp_path / "vmlinux"
    source.write_text("int native_read_msr(void) { return 1; } int main(void) { return 0; }")
    subprocess.run([need("cc"), "-o", program, source], check=True)
    listed = subprocess.check_output([need("nm"), program], text=True)
    [at] = [int(line.split()[0], 16) for line in listed.splitlines() if "native_read" in line]
    assert Symbols.read(program).name(at + 2) == "native_read_msr+0x2"
    subprocess.run([need("strip"), program], check=True)
    with pytest.raises(SymbolError, match="there are no functions: give the guest's kernel"):
        Symbols.read(program)
    program.write_bytes(program.read_bytes()[:100])
    with pytest.raises(SymbolError, match="this ELF file is damaged"):
        Symbols.read(program)


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(5000), b"0000000000000000 T hidden\n"])
def test_what_has_no_symbols(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SymbolError, match="there are no functions"):
        Symbols.read(tmp_path / "file")
    with pytest.raises(SymbolError, match="the symbols cannot be read: No such file"):
        Symbols.read(tmp_path / "none")
    with pytest.raises(SymbolError, match="not a regular file"):
        Symbols.read(Path("/dev/null"))
