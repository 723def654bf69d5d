"""
The MSRs of a CPU have a name there: at most three in a hundred of those that msr-safe lists for it
have none.

``listed.toml`` has the lists' indices. With KVMSR_MSR_SAFE, a checkout of msr-safe, the lists
themselves are read, those of other CPUs, too. The figures are printed: ``pytest -rP``.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest

from kvmsr.msr import catalog
from kvmsr.msr.cpu import find_cpu

MOST = 0.03
LISTED = tomllib.loads((Path(__file__).parent / "listed.toml").read_text())
WITHOUT_A_NAME = {
    # Client Haswell and Broadwell: msr-safe gives them Sandy Bridge's counters of cache slices.
    "intel:06_3C": 0.09, "intel:06_3D": 0.09, "intel:06_45": 0.09, "intel:06_46": 0.09,
    "intel:06_47": 0.09,
    # Vermeer: msr-safe gives it six more pairs of variable MTRRs than it has.
    "amd:19_21": 0.05,
}  # fmt: skip


def unnamed(spec, indices):
    """Return those of *indices* that the catalog does not know on a CPU, and print the figures."""
    cpu = find_cpu(spec)
    found = [index for index in sorted(indices) if catalog().get(index, cpu) is None]
    share = len(found) / len(indices)
    which = " ".join(f"{index:#x}" for index in found)
    print(f"{spec}: {len(found)} of {len(indices)} without a name, {share:.1%}: {which}")
    return share


def named(index, spec):
    """Return the name that an index has on a CPU, or "" if it has none there."""
    found = catalog().get(index, find_cpu(spec))
    return found.name if found else ""


def spans(text):
    for span in text.split():
        first, _, last = span.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


@pytest.mark.parametrize("spec", LISTED)
def test_what_a_cpu_has_is_named(spec):
    assert unnamed(spec, set(spans(LISTED[spec]))) <= MOST


def test_what_msr_safe_lists_is_named():
    folder = os.environ.get("KVMSR_MSR_SAFE")
    if folder is None:
        pytest.skip("needs KVMSR_MSR_SAFE, a checkout of msr-safe")
    shares = {}
    for path in sorted(Path(folder, "allowlists").glob("al_*_*")):
        family, model = (int(part, 16) for part in path.name.split("_")[1:])
        spec = f"{'intel' if family == 6 else 'amd'}:{family:02X}_{model:02X}"
        indices = re.findall(r"^(?:# *)?(0x[0-9A-F]+) +0x", path.read_text(), re.M | re.I)
        shares[spec] = unnamed(spec, {int(index, 16) for index in indices})
    assert shares
    assert {s: f"{n:.1%}" for s, n in shares.items() if n > WITHOUT_A_NAME.get(s, MOST)} == {}


def test_a_cpu_has_no_name_of_another_models():
    """What Nehalem-EX has at 0xc20 is not claimed for Sapphire Rapids."""
    assert named(0xC20, "nehalem-ex") == "MSR_B0_PMON_BOX_CTRL"
    assert named(0xC20, "sapphire-rapids") == ""


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (0x690, {"haswell": "MSR_CORE_PERF_LIMIT_REASONS", "skylake": "MSR_LASTBRANCH_16_FROM_IP"}),
        (0x620, {"haswell-e": "MSR_UNCORE_RATIO_LIMIT", "kaby-lake": "MSR_RING_RATIO_LIMIT"}),
        (0x1AE, {"goldmont": "MSR_TURBO_GROUP_CORECNT", "haswell-e": "MSR_TURBO_RATIO_LIMIT1"}),
        (0x40, {"core-duo": "MSR_LASTBRANCH_0", "penryn": "MSR_CORE2_LASTBRANCH_0_FROM_IP"}),
        (0x195, {"pentium-4": "MSR_MCG_R13", "alder-lake": "IA32_OVERCLOCKING_STATUS"}),
        (0xA0, {"penryn": "MSR_SMRR_PHYSBASE", "ice-lake": "MSR_BIOS_MCU_ERRORCODE"}),
        (0xD14, {"nehalem-ex": "MSR_C0_PMON_EVNT_SEL2", "alder-lake": "IA32_L2_QOS_MASK_4"}),
        (0xD50, {"nehalem-ex": "MSR_C2_PMON_EVNT_SEL0", "skylake": "IA32_L2_QOS_EXT_BW_THRTL_0"}),
        (0xD93, {"nehalem-ex": "MSR_NEHALEM_C1_PMON_CTR1", "sapphire-rapids": "IA32_PASID"}),
        (0x705, {"ivy-bridge": "MSR_UNC_CBO_0_UNIT_STATUS", "haswell": ""}),
        (0xE18, {"haswell-e": "MSR_HASWELL_E_C1_PMON_CTR0", "nehalem-ex": "MSR_R0_PMON_EVNT_SEL4"}),
        (0x309, {"prescott": "MSR_FLAME_COUNTER1", "skylake": "IA32_FIXED_CTR0"}),
        (0x1DD, {"pentium-m": "MSR_PENTIUM_M_LER_TO_LIP", "skylake": "MSR_LER_FROM_LIP"}),
    ],
)  # fmt: skip
def test_an_index_is_something_else_on_another_cpu(index, names):
    assert {cpu: named(index, cpu) for cpu in names} == names


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x1CC, "IA32_FRED_RSP0"), (0x1D0, "IA32_FRED_STKLVLS"), (0x1D4, "IA32_FRED_CONFIG"),
        (0x985, "IA32_UINTR_RR"), (0x98A, "IA32_UINTR_TT"), (0x981, "IA32_TME_CAPABILITY"),
        (0x87, "IA32_MKTME_KEYID_PARTITIONING"), (0xD91, "IA32_COPY_LOCAL_TO_PLATFORM"),
        (0x990, "IA32_COPY_STATUS"), (0xBC, "IA32_MISC_PACKAGE_CTLS"), (0x1406, "IA32_MCU_CONTROL"),
        (0x1B01, "IA32_UARCH_MISC_CTL"), (0x17D2, "IA32_THREAD_FEEDBACK_CHAR"),
        (0x17DA, "IA32_HRESET_ENABLE"), (0x776, "IA32_HWP_CTL"), (0x3F4, "IA32_PEBS_BASE"),
        (0x1904, "IA32_PMC_GP1_CTR"), (0x1986, "IA32_PMC_FX1_CFG_B"), (0x2002, ""),
    ],
)  # fmt: skip
def test_what_is_new_has_its_name(index, name):
    assert named(index, "granite-rapids") == name


def test_intels_msrs_say_what_they_are():
    assert [msr.name for msr in catalog() if "intel" in msr.vendors and not msr.about] == []


def test_where_no_cpu_is_known_the_meaning_of_most_models_comes_first():
    names = [catalog()[index].name for index in (0x300, 0x3F2, 0x3F8, 0x1A4)]
    assert names == [
        "MSR_SGXOWNEREPOCH0",
        "MSR_PEBS_DATA_CFG",
        "MSR_PKG_C3_RESIDENCY",
        "MSR_MISC_FEATURE_CONTROL",
    ]
