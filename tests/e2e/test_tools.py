"""
Tools in a guest under preset:power-meter, on CPUs of both vendors: they show what the policy says.
"""

import re

import pytest

from kvmsr.policy.file import load_policy
from tests.command import run_guest
from tests.e2e.toolbox import perf, ram_disk, said

pytestmark = [pytest.mark.peer, pytest.mark.slow]

PRESET = "preset:power-meter"
PROFILES = {"intel": "linux-6.1-intel", "amd": "linux-6.18-amd"}
ZONES = (
    'for zone in /sys/class/powercap/*:*; do echo "$(cat $zone/name) $(cat $zone/energy_uj)"; done'
)
SCRIPT = """
run cpupower info
run cpupower set -b 8
run rdmsr -p 0 0x1b0
run wrmsr -p 0 0x1b0 4
run rdmsr 0x1b0
run rdmsr 0x611
run wrmsr 0x611 0
run rdmsr 0x123456
run cpupower frequency-set -g performance
run cpupower frequency-info
run turbostat --quiet --num_iterations 1 --interval 30
run turbostat --num_iterations 1 --interval 1
run cpupower monitor -i 30
energy() {
    cut -d' ' -f1 /proc/uptime
    for zone in /sys/class/powercap/*:*; do echo "$(cat $zone/name) $(cat $zone/energy_uj)"; done
}
later() { energy; sleep 300; energy; }
run later
run x86info -a
"""
PERF = "run perf stat -a -e power/energy-pkg/ sleep 60\n"


def parameters(msr):
    """Return the parameters of the model behind an MSR in the preset."""
    rules = load_policy(PRESET).rules
    return next(r for r in rules if any(a <= msr <= b for a, b in r.msrs)).read.parameters


POWER, MEMORY = parameters(0x611).watts, parameters(0x611).memory_watts
CELSIUS = parameters(0x19C).celsius
MHZ, BIAS = 100 * max(parameters(0xE8).turbo), parameters(0xE8).energy_perf_bias


class Tools:
    """What the tools said in a guest, and the report of its run."""

    def __init__(self, vendor, report, console):
        self.vendor, self.report, self.console = vendor, report, console
        self._said = said(console)

    def __getitem__(self, command):
        return self._said[command]


def run_tools(folder, kernel, vendor, script, *options, policy=PRESET, programs=()):
    """Run a script in a guest on a vendor's CPU, and return what the tools in it said."""
    (folder / "initrd").write_bytes(ram_disk(kernel, script, programs))
    report, console = run_guest(
        folder, kernel, "--soft-profile", PROFILES[vendor], "--policy", policy, "--memory", "512M",
        "--initrd", folder / "initrd", "--append", "console=ttyS0 quiet panic=-1",
        "--timeout", "250", *options, backend="soft",
    )  # fmt: skip
    assert report["exit"]["kind"] == "reset", console
    return Tools(vendor, report, console)


@pytest.fixture(scope="module", params=PROFILES)
def guest(request, kernel, tmp_path_factory):
    """Run all tools in one guest of each vendor's CPU."""
    folder = tmp_path_factory.mktemp(request.param)
    try:
        programs, script = [perf()], SCRIPT + PERF
    except pytest.skip.Exception:
        programs, script = [], SCRIPT
    return run_tools(folder, kernel, request.param, script, programs=programs)


def close_to(value):
    return pytest.approx(value, rel=0.03)


def test_the_guest_sees_what_the_policy_answers(guest):
    (note,) = [note for note in guest.report["notes"] if note.startswith("CPUID shows ")]
    names = set(re.findall(r"\w+(?=,)", note))
    ours = {"aperfmperf", "est", "dtherm", "ida", "epb", "pts"}
    theirs = {"aperfmperf", "rapl", "hw_pstate", "eff_freq_ro"}
    assert names == (ours if guest.vendor == "intel" else theirs)


def test_turbostat_shows_watts_degrees_and_megahertz(guest):
    done = guest["turbostat --quiet --num_iterations 1 --interval 30"]
    assert done.status == 0
    summary, cpu0 = done.table
    for row in (summary, cpu0):
        assert float(row["PkgWatt"]) == close_to(POWER)
        assert float(row["Bzy_MHz"]) == close_to(MHZ)
        assert float(row["Busy%"]) == close_to(100)
        if guest.vendor == "amd":
            assert float(row["CorWatt"]) == close_to(POWER)
            continue
        assert float(row["RAMWatt"]) == close_to(MEMORY)
        assert [float(row[name]) for name in ("CoreTmp", "PkgTmp")] == [CELSIUS] * 2
        assert [float(row[name]) for name in ("SMI", "CPU%c6", "PKG_%", "RAM_%")] == [0] * 4


def test_turbostat_decodes_every_register_that_it_reads(guest):
    done = guest["turbostat --num_iterations 1 --interval 1"]
    assert done.status == 0
    assert "read failed" not in done.text
    if guest.vendor == "amd":
        assert "MSR_RAPL_PWR_UNIT: 0x000a1003 (0.125000 Watts, 0.000015 Joules" in done.text
        return
    for line in (
        "CPUID(6): APERF, TURBO, DTS, PTM, No-HWP,",
        f"{MHZ // 100} * 100.0 = {MHZ}.0 MHz max turbo 1 active cores",
        "cpufreq driver: intel_cpufreq",
        "cpu0: EPB: 4",
        "MSR_PKG_POWER_INFO: 0x41000000208 (65 W TDP",
        "MSR_IA32_TEMPERATURE_TARGET: 0x00640000 (100 C)",
        f"MSR_IA32_PACKAGE_THERM_STATUS: 0x00370000 ({CELSIUS:.0f} C)",
        "(locked, pkg-cstate-limit=0 (pc0)",
    ):
        assert line in done.text


def test_rdmsr_and_wrmsr_have_the_policys_registers(guest):
    assert guest["rdmsr 0x1b0"].text == "4\n"
    assert guest["wrmsr -p 0 0x1b0 4"].status == 0
    assert int(guest["rdmsr 0x611"].text, 16) > 0
    assert "CPU 0 cannot set MSR 0x00000611" in guest["wrmsr 0x611 0"].text
    assert "CPU 0 cannot read MSR 0x00123456" in guest["rdmsr 0x123456"].text


def test_cpupower_finds_the_energy_bias_on_intel(guest):
    info = guest["cpupower info"].text
    if guest.vendor == "amd":
        assert "System does not support Intel's performance bias setting" in info
        return
    assert f"perf-bias: {BIAS}\n" in info
    assert guest["cpupower set -b 8"].status == 0
    assert guest["rdmsr -p 0 0x1b0"].text == "8\n"


def test_cpupower_finds_frequencies(guest):
    assert guest["cpupower frequency-set -g performance"].status == 0
    info = guest["cpupower frequency-info"].text
    if guest.vendor == "amd":
        states = re.findall(r"Pstate-P(\d): +(\d+)MHz", info)
        expected = enumerate(parameters(0xC0010064).mhz)
        assert states == [(str(number), str(mhz)) for number, mhz in expected]
        assert "driver: acpi-cpufreq" in info
        assert "available frequency steps:  3.00 GHz, 2.20 GHz, 1.50 GHz" in info
        assert "current CPU frequency: 3.00 GHz (asserted by call to hardware)" in info
        return
    assert "driver: intel_cpufreq" in info
    assert "hardware limits: 800 MHz - 3.00 GHz" in info
    assert "Supported: yes\n    Active: yes" in info
    assert re.search(r"current CPU frequency: [23]\.\d+ GHz \(asserted by call to kernel\)", info)


def test_x86info_decodes_registers(guest):
    done = guest["x86info -a"]
    assert done.status == 0
    assert "Number of reporting banks : 10" in done.text
    if guest.vendor == "intel":
        assert f"MSR_IA32_PERF_STATUS: {MHZ // 100 << 8:#x}" in done.text


def test_cpupower_monitor_measures_the_frequency(guest):
    head, *_, row = guest["cpupower monitor -i 30"].text.rstrip().splitlines()
    assert "Mperf" in head
    busy, _, mhz = re.findall(r"-?[\d.]+", row)[-3:]
    assert (float(busy), float(mhz)) == (close_to(100), close_to(MHZ))


def test_powercap_counts_the_policys_watts(guest):
    before, after = re.split(r"^(?=[\d.]+$)", guest["later"].text, flags=re.MULTILINE)[1:]
    seconds = float(after.split()[0]) - float(before.split()[0])
    first, last = (
        dict(re.findall(r"^(\S+) (\d+)$", text, re.MULTILINE)) for text in (before, after)
    )
    watts = {name: (int(last[name]) - int(first[name])) / 1e6 / seconds for name in first}
    expected = {"package-0": POWER, "core": POWER}
    if guest.vendor == "intel":
        expected["dram"] = MEMORY
    assert watts == {name: close_to(value) for name, value in expected.items()}


def test_perf_counts_the_policys_joules(guest):
    perf()
    done = guest["perf stat -a -e power/energy-pkg/ sleep 60"]
    assert done.status == 0
    joules, seconds = re.findall(r"([\d.]+) (?:Joules power/energy-pkg/|seconds time)", done.text)
    assert float(joules) / float(seconds) == close_to(POWER)


HWP = """
[policy]
extends = ["preset:power-meter"]

[[rule]]
msr = [
    0xe7, 0xe8, 0xce, "0x1ad-0x1ae", "0x198-0x199", 0x1b0, 0x648,
    "0x770-0x771", "0x773-0x774", 0x777,
]
read = { model = "frequency", minimum = 8, turbo = [40, 38] }
write = { model = "frequency", minimum = 8, turbo = [40, 38] }
"""
ASK = """
run cpupower frequency-info
run cpupower frequency-set -u 2GHz
run turbostat --quiet --num_iterations 1 --interval 30
"""


def test_each_vcpu_runs_at_the_frequency_that_linux_requests_by_hwp(kernel, tmp_path):
    (tmp_path / "hwp.toml").write_text(HWP)
    guest = run_tools(
        tmp_path, kernel, "intel", ASK, "--cpus", "2", "--cpu-feature", "+hwp", "--cpu-feature",
        "-epb", policy=tmp_path / "hwp.toml",
    )  # fmt: skip
    assert "driver: intel_pstate" in guest["cpupower frequency-info"].text
    assert "hardware limits: 800 MHz - 4.00 GHz" in guest["cpupower frequency-info"].text
    rows = guest["turbostat --quiet --num_iterations 1 --interval 30"].table
    assert [row["CPU"] for row in rows] == ["-", "0", "1"]
    for row in rows:
        assert float(row["Bzy_MHz"]) == close_to(2000)
        assert float(row["Busy%"]) == close_to(100)
    assert float(rows[0]["PkgWatt"]) == close_to(POWER)
    (note,) = [note for note in guest.report["notes"] if note.startswith("CPUID shows ")]
    assert "hwp, hwp_epp, hwp_notify, because" in note
    assert "epb" not in note
