"""AMD's MSRs: whose they are, what they mean on which CPU, and what their bits are."""

import pytest

from kvmsr.msr import catalog, decode, find_cpu

INTEL, MILAN = find_cpu("intel:06_8F"), find_cpu("amd:19_01")


def fields(index, cpu):
    return {field.name: field.span for field in catalog().get(index, find_cpu(cpu)).fields}


@pytest.mark.parametrize(
    "index",
    [
        0x10, 0x1B, 0x48, 0x49, 0x1DB, 0x250, 0x26F, 0x6A0, 0x6A8, 0x802, 0x809, 0x83F, 0x853,
        0xC81, 0xC8F, 0xC9F, 0xDA0, 0xC0000108, 0xC000020F, 0xC0000280, 0xC0000400, 0xC0000410,
        0xC0000502, 0xC0010118, 0xC0010132, 0xC0010136, 0xC0010138, 0xC001023B, 0xC001F000,
    ],
)  # fmt: skip
def test_amd_has_it(index):
    msr = catalog().get(index, MILAN)
    assert msr is not None
    assert "amd" in msr.vendors


def test_each_register_of_each_bank_of_scalable_mca_has_a_name():
    tails = ["CTL", "STATUS", "ADDR", "MISC", "CONFIG", "IPID", "SYND", "", "DESTAT", "DEADDR"]
    tails += ["MISC1", "MISC2", "MISC3", "MISC4", "SYND1", "SYND2"]
    for bank in range(64):
        names = [catalog().name(0xC0002000 + 16 * bank + at, MILAN) for at in range(16)]
        assert names == [f"MSR_AMD64_SMCA_MC{bank}_{tail}" if tail else "" for tail in tails]
    assert catalog().meanings(0xC0002000)[0].holds_on(find_cpu("amd:15_02")) is False


@pytest.mark.parametrize(
    ("cpu", "name", "span"),
    [
        ("k10", "did", "8:6"), ("k10", "nb_vid", "31:25"), ("llano", "did", "3:0"),
        ("bobcat", "did_msd", "8:4"), ("piledriver", "vid", "16:9"), ("jaguar", "idd_div", "41:40"),
        ("zen2", "did", "13:8"), ("milan", "fid", "7:0"), ("genoa", "vid_8", "32"),
        ("turin", "fid", "11:0"), ("turin", "enabled", "63"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [0, 7])
def test_a_p_state_is_defined_as_the_family_does(cpu, name, span, number):
    assert fields(0xC0010064 + number, cpu)[name] == span


def test_a_p_state_of_zen_5_is_in_megahertz():
    decoded = decode(catalog().get(0xC0010064, find_cpu("turin")), 1 << 63 | 680)
    assert "fid=3400 MHz" in repr(decoded)


def test_the_first_counter_has_the_fields_of_the_others():
    first, *others = (fields(0xC0010200 + 2 * number, "milan") for number in range(6))
    assert "host_only" in first
    assert others == [first] * 5


def test_sev_status_is_named_up_to_the_last_bit():
    low = {field.low: field.name for field in catalog()[0xC0010131].fields}
    assert set(low) == {*range(15), 16, 17, 18, 23}
    assert low[3] == "vtom"
    assert low[11] == "secure_tsc"
    assert low[18] == "secure_avic"


def test_hwcr_is_the_familys():
    assert fields(0xC0010015, "jaguar")["force_rdwr_sz_prb"] == "23"
    assert fields(0xC0010015, "k8")["ffdis"] == "6"
    milan = fields(0xC0010015, "milan")
    assert "23" not in milan.values()
    assert milan["cpuid_user_dis"] == "35"


def test_stores_are_kept_in_order_by_another_bit_on_each_family():
    ssbd = [fields(0xC0011020, cpu)["ssbd"] for cpu in ("zen2", "jaguar", "piledriver")]
    assert ssbd == ["10", "33", "54"]
    assert fields(0xC0011020, "milan") == {}


def test_a_bank_of_machine_checks_has_each_vendors_bits():
    for bank in (0, 31):
        status = 0x401 + 4 * bank
        assert catalog().get(status, INTEL).name == catalog().get(status, MILAN).name
        amd = fields(status, "milan")
        assert (amd["cecc"], amd["uecc"], amd["deferred"]) == ("46", "45", "44")
        assert (amd["poison"], amd["syndv"], amd["tcc"]) == ("43", "53", "55")
        assert fields(status, "k10")["syndrome"] == "54:47"
        assert "cecc" not in fields(status, "sapphire-rapids")
        assert fields(0xC0002001 + 16 * bank, "milan") == amd


@pytest.mark.parametrize(
    ("index", "bit", "alone"),
    [(0x48, "psfd", "bhi_dis_s"), (0x1D9, "lbr", "bts"), (0xDA0, "cet_s", "pt")],
)
def test_what_both_vendors_have_has_the_bits_of_each(index, bit, alone):
    assert bit in fields(index, "milan")
    assert alone not in fields(index, "milan")
    assert {bit, alone} <= set(fields(index, "intel:06_8F"))


@pytest.mark.parametrize(
    ("index", "cpu", "name"),
    [
        (0xC0010230, "jaguar", "MSR_F16H_L2I_PERF_CTL0"),
        (0xC0010230, "milan", "MSR_AMD_L3_PERF_CTL0"),
        (0xC0010240, "piledriver", "MSR_F15H_NB_PERF_CTL0"),
        (0xC0010240, "milan", "MSR_AMD_DF_PERF_CTL0"),
        (0xC0010258, "genoa", "MSR_AMD_DF_PERF_CTL12"),
        (0xC0000082, "k6", "MSR_K6_WHCR"),
        (0xC0000082, "milan", "IA32_LSTAR"),
        (0x1DB, "milan", "MSR_AMD_BR_FROM"),
    ],
)
def test_an_index_is_what_the_cpu_has_there(index, cpu, name):
    assert catalog().name(index, find_cpu(cpu)) == name
    assert catalog().lookup(name).index == index


def test_l3s_counters_are_selected_as_the_family_does():
    assert fields(0xC0010230, "zen2")["slice_mask"] == "51:48"
    assert fields(0xC0010230, "milan")["slice_id"] == "50:48"


def test_every_entry_of_amds_and_of_hypervisors_is_described():
    own = [msr for msr in catalog() if not set(msr.vendors) & {"intel"}]
    assert len(own) > 1500
    assert [msr.name for msr in own if not msr.about] == []


def test_a_nested_hyper_v_has_the_hypervisors_below():
    assert catalog().name(0x40001002) == "HV_X64_MSR_NESTED_VP_INDEX"
    assert catalog().name(0x4000109F) == "HV_X64_MSR_NESTED_SINT15"
    assert "Hyper-V" in catalog().neighbourhood(0x40001085)
