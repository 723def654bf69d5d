"""The guest that reads MSRs in functions that others have called: calls.S."""

import subprocess

from tests.conftest import ROOT, need

A = 0x474F4F00  # unknown to every KVM
POLICY = f"""
[[rule]]
msr = [0x35, "{A:#x}-{A + 0xFF:#x}"]
read = {{ value = 1 }}
"""

# By MSR, who called the function that reads it, the nearest first, and which of these are guesses.
CALLERS = {
    A + 0x32: (["after_32_bits"], 0),
    A + 1: (["after_leaf", "after_framed_middle", "after_framed_outer"], 0),
    A + 2: (["after_framed_middle", "after_framed_outer"], 0),
    A + 3: (["after_bare_leaf", "after_bare_middle", "after_bare_outer"], 0b010),
}
WAYS = [
    ["after_read_35_one_way", "after_one_way"],
    ["after_read_35_other_way", "after_other_way"],
]
LOST = list(range(A + 0x80, A + 0x89))


def build(folder):
    """Build the guest; return its image and the addresses of its functions."""
    made = {kind: folder / f"calls.{kind}" for kind in ("o", "elf", "bin")}
    source = ROOT / "tests/session/calls.S"
    link = [need("ld"), "-m", "elf_x86_64", "-Ttext=0x7c00", "-e", "_start", "-o", made["elf"]]
    subprocess.run([need("as"), "--64", "-o", made["o"], source], check=True)
    subprocess.run([*link, made["o"]], check=True)
    subprocess.run([need("objcopy"), "-O", "binary", made["elf"], made["bin"]], check=True)
    listed = subprocess.check_output([need("nm"), "-n", made["elf"]], text=True)
    (folder / "System.map").write_text(listed)
    places = (line.split() for line in listed.splitlines())
    return made["bin"], {name: int(address, 16) for address, _, name in places}


def check(rows, places):
    """Check what was recorded of the guest against what it called."""
    names = {address: name for name, address in places.items()}
    ways = []
    for row in rows:
        index, count = int(row["index"]), int(row["n_callers"])
        callers = [names.get(one, hex(one)) for one in row["callers"][:count].tolist()]
        if index == 0x35:
            ways.append(callers)
        elif index in CALLERS:
            assert (callers, int(row["guesses"])) == CALLERS[index], f"{index:#x}"
        else:
            assert index in LOST
    assert ways == WAYS
    assert rows["index"].tolist()[-len(LOST) :] == LOST
