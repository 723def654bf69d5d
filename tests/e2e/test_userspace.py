"""User space on the soft backend: Debian's kernel, busybox and a program of our own."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.command import run_guest
from tests.conftest import need, peer
from tests.nested.archive import Archive
from tests.nested.parts import Kernel

pytestmark = [pytest.mark.peer, pytest.mark.slow]

SOURCE = Path(__file__).parent / "userspace/work.c"

POLICY = """
[defaults]
unknown = "fault"

[[rule]]
msr = 0x35
read = { value = 0x20004 }

[[rule]]
msr = 0x1b0
read = "shadow"
write = "shadow"
reset = 6

[[rule]]
msr = 0x34 # KVM knows it
read = { value = 0x1122334455667788 }
write = "fault"
"""

METERS = """
[[rule]]
msr = ["0x606", "0x610-0x611", "0x614", "0x619", "0x639", "0x641"]
read = { model = "rapl.intel", watts = 42.0, cores_watts = 30.0 }
write = { model = "rapl.intel", watts = 42.0, cores_watts = 30.0 }

[[rule]]
msr = "0xc0010299-0xc001029b"
read = { model = "rapl.amd", watts = 42.0 }
write = "fault"

[[rule]]
msr = [0xe7, 0xe8, 0xc00000e7, 0xc00000e8]
read = { model = "aperf-mperf", base_mhz = 2000, mhz = 3400 }
write = { model = "aperf-mperf", base_mhz = 2000, mhz = 3400 }
"""

START = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
"""
END = "/bin/busybox reboot -f\n"
CLOCKS = "/bin/busybox cut -d' ' -f1 /proc/uptime"


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """Return the program, which needs no library."""
    program = tmp_path_factory.mktemp("work") / "work"
    done = subprocess.run(
        [need("cc"), "-O2", "-static", "-pthread", "-o", program, SOURCE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"needs a C compiler and a static C library: {done.stderr[:200]}")
    return program


@pytest.fixture
def boot(kernel, work, tmp_path):
    """Return a function that boots the kernel, runs a script there, and returns what it printed."""
    modules = Kernel(kernel, kernel.parent.parent / "lib/modules")

    def run(script, *options):
        archive = Archive()
        archive.copy(peer("busybox", "**/busybox"), Path("/bin/busybox"))
        archive.copy(work, Path("/work"))
        for name, data in modules.module_and_needs("msr").items():
            archive.add(Path(f"/{name}.ko"), data)
        archive.add(Path("/init"), (START + script + END).encode(), executable=True)
        initrd, policy = tmp_path / "initrd", tmp_path / "policy.toml"
        initrd.write_bytes(archive.finish())
        policy.write_text(POLICY + METERS)
        result, console = run_guest(
            tmp_path, kernel, "--memory", "512M", "--initrd", initrd, "--policy", policy,
            "--append", "console=ttyS0 quiet panic=-1", "--timeout", "200", *options,
            backend="soft",
        )  # fmt: skip
        assert result["exit"]["kind"] == "reset", console
        return result, console

    return run


def test_programs_do_there_what_they_do_here(boot, work):
    here = subprocess.run([work], capture_output=True, text=True, check=True, timeout=120).stdout
    _, console = boot("/work\n")
    there = [line for line in console.splitlines() if not line.startswith("[")]
    assert there == here.splitlines()


def test_the_msr_driver_reads_what_the_policy_says(boot):
    report, console = boot(
        "/bin/busybox insmod /msr.ko\n"
        "for what in 'rdmsr 0x35' 'rdmsr 0x1b0' 'wrmsr 0x1b0 0x77' 'rdmsr 0x1b0' 'rdmsr 0x34'"
        " 'wrmsr 0x34 6' 'rdmsr 0x123456' 'wrmsr 0x35 1'; do /work $what; done\n"
        "/bin/busybox dd if=/dev/cpu/0/msr bs=8 count=1 skip=1 iflag=skip_bytes 2>/dev/null"
        " | /bin/busybox wc -c\n"
    )
    lines = [line for line in console.splitlines() if re.match(r"rdmsr|wrmsr", line)]
    assert lines == [
        "rdmsr 0x35 = 0x20004",
        "rdmsr 0x1b0 = 0x6",
        "wrmsr 0x1b0 = 0x77",
        "rdmsr 0x1b0 = 0x77",
        "rdmsr 0x34 = 0x1122334455667788",
        "wrmsr 0x34: Input/output error",
        "rdmsr 0x123456: Input/output error",
        "wrmsr 0x35: Input/output error",
    ]
    seen = {(row["index"], row["op"]): row for row in report["accesses"]}
    assert seen["0x34", "read"]["reason"] == "filter"
    assert seen["0x123456", "read"]["outcomes"]["fault"] >= 1
    assert seen["0x1b0", "write"]["last_value"] == "0x77"


def test_a_sleeping_guest_takes_no_time(boot):
    report, console = boot(f"{CLOCKS}\n/bin/busybox sleep 30\n{CLOCKS}\n")
    before, after = map(float, re.findall(r"^([0-9.]+)$", console, re.MULTILINE))
    assert 30 <= after - before < 32
    assert report["wall_s"] < after - before


def test_unless_time_is_to_be_real(boot):
    report, console = boot(f"{CLOCKS}\n/bin/busybox sleep 3\n{CLOCKS}\n", "--real-time")
    before, after = map(float, re.findall(r"^([0-9.]+)$", console, re.MULTILINE))
    assert after - before >= 3
    assert report["wall_s"] > after - before


READ_METERS = f"""{CLOCKS}
for n in 0x606 0x611 0x639 0xc0010299 0xc001029b 0xe7 0xe8; do /work rdmsr $n; done
"""


def test_meters_rise_as_the_policy_says(boot):
    """Energy by the watts, and turbostat's arithmetic by the megahertz, in the guest's own time."""
    _, console = boot(
        f"/bin/busybox insmod /msr.ko\n{READ_METERS}/bin/busybox sleep 20\n{READ_METERS}"
    )
    moments = [float(text) for text in re.findall(r"^([0-9.]+)$", console, re.MULTILINE)]
    seconds = moments[1] - moments[0]
    values = [
        {int(index, 0): int(value, 0) for index, value in re.findall(r"rdmsr (\S+) = (\S+)", part)}
        for part in re.split(r"^[0-9.]+$", console, flags=re.MULTILINE)[1:]
    ]
    rise = {index: (values[1][index] - values[0][index]) % 2**32 for index in values[0]}
    for unit, counter, watts in (
        (0x606, 0x611, 42),
        (0x606, 0x639, 30),
        (0xC0010299, 0xC001029B, 42),
    ):
        joules = rise[counter] / 2 ** (values[0][unit] >> 8 & 0x1F)
        assert joules / seconds == pytest.approx(watts, rel=0.02)
    wide = {index: values[1][index] - values[0][index] for index in (0xE7, 0xE8)}
    assert 2000 * wide[0xE8] / wide[0xE7] == pytest.approx(3400, rel=0.02)
