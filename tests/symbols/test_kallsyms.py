"""Symbols out of a kernel that has no symbol table."""

import random
import struct
import zlib

import pytest

from kvmsr.errors import SymbolError
from kvmsr.symbols import Symbols
from kvmsr.symbols.kallsyms import read_kallsyms

BASE = 0xFFFFFFFF81000000
COUNT = 1500
LONG = "a_function_with_a_long_name_" * 6
NAMES = ["_text", *(f"function_{n}" for n in range(COUNT - 3)), "native_read_msr", LONG]


def aligned(data, to=8):
    return data + bytes(-len(data) % to)


def kallsyms(*, later, per_cpu):
    """Return address by name, and what scripts/kallsyms.c would make of them."""
    places = {name: BASE + 16 * number for number, name in enumerate(NAMES)}
    tokens = [bytes([one]) if chr(one).isprintable() and one < 128 else b"" for one in range(256)]
    tokens[1] = b"function_"
    table, index = b"", b""
    for token in tokens:
        index += struct.pack("<H", len(table))
        table += token + b"\0"
    names = b""
    for name in places:
        data = ("t" + name).encode().replace(b"function_", b"\1")
        size = (
            bytes([len(data)])
            if len(data) < 128
            else bytes([len(data) & 127 | 128, len(data) >> 7])
        )
        names += size + data
    offsets = [BASE - 1 - at if per_cpu else at - BASE for at in places.values()]
    where = aligned(struct.pack(f"<{COUNT}i", *offsets)) + struct.pack("<Q", BASE)
    head = aligned(struct.pack("<Q", COUNT) + names) + aligned(bytes(4 * 6))
    parts = [head, aligned(table), aligned(index)]
    return places, b"".join([*parts, where] if later else [where, *parts])


@pytest.mark.parametrize("later", [False, True], ids=["6.1", "6.6"])
@pytest.mark.parametrize("per_cpu", [False, True])
def test_symbols_are_found(later, per_cpu):
    places, data = kallsyms(later=later, per_cpu=per_cpu)
    noise = random.Random(3).randbytes(1 << 16)
    found = read_kallsyms(noise + data + noise)
    assert {name.decode(): at for at, _, name in found} == places
    assert {kind for _, kind, _ in found} == {b"t"}


def test_a_kernel_in_its_bzimage(tmp_path):
    """And which way a function was called is said by the names in it."""
    places, data = kallsyms(later=True, per_cpu=True)
    packed = zlib.compressobj(wbits=31)
    packed = packed.compress(b"\x7fELF" + bytes(4092) + data) + packed.flush()
    head = bytearray(1024)
    head[0x1F1], head[0x202:0x206] = 1, b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(packed))
    (tmp_path / "vmlinuz").write_bytes(head + packed)
    symbols = Symbols.read(tmp_path / "vmlinuz")
    assert symbols.range("native_read_msr") == (places["native_read_msr"], places[LONG] - 1)
    path = (places["native_read_msr"] + 3, [places["function_7"] + 16, places["function_9"] + 5], 2)
    assert symbols.chain(*path) == "native_read_msr+0x3 ← function_7 ← function_9?"
    assert symbols.asker(*path[:2]) == "function_7"
    (tmp_path / "vmlinuz").write_bytes((head + packed)[:-4000])
    with pytest.raises(SymbolError, match="the kernel inside cannot be read: its gzip stream is"):
        Symbols.read(tmp_path / "vmlinuz")


def test_a_function_that_is_not_there(tmp_path):
    lines = ["t init_amd.isra.0", "t twice", "t other", "t twice", "T last"]
    text = "".join(f"{BASE + 16 * n:016x} {line}\n" for n, line in enumerate(lines))
    (tmp_path / "System.map").write_text(text)
    symbols = Symbols.read(tmp_path / "System.map")
    with pytest.raises(
        SymbolError, match=r"is called 'init_amd'; did you mean 'init_amd.isra.0'\?"
    ):
        symbols.range("init_amd")
    with pytest.raises(SymbolError, match=r"2 functions are called 'twice', at 0xf.*: write addr"):
        symbols.range("twice")
    assert symbols.range("other") == (BASE + 32, BASE + 47)


def test_kernels_that_were_changed_are_read_or_not():
    _, data = kallsyms(later=False, per_cpu=True)
    chance = random.Random(5)
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 9)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        read_kallsyms(bytes(changed[: chance.randrange(len(changed))]))
        read_kallsyms(bytes(changed))


@pytest.mark.peer
def test_debians_kernel(kernel):
    symbols = Symbols.read(kernel)
    assert len(symbols) > 30_000
    first, last = symbols.range("init_amd")
    assert 0xFFFFFFFF81000000 < first < last < first + (1 << 16)
