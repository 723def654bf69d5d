"""The files from which the catalog is made."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvmsr.errors import CatalogError
from kvmsr.msr import catalog
from kvmsr.msr.source import read_sources
from tests.conftest import PACKAGE, ROOT

DATA = PACKAGE / "msr/data"


def test_the_package_has_what_the_files_say():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from build_catalog import build
    finally:
        sys.path.pop(0)
    made = (DATA / "catalog.json").read_bytes()
    assert made == build(DATA), "run tools/build_catalog.py"


def test_there_is_enough_of_it():
    assert len(catalog()) >= 1000
    assert sum(bool(msr.fields) for msr in catalog()) >= 150


def test_each_entry_says_whose_it_is_and_where_that_is_from():
    for msr in catalog():
        assert msr.vendors, msr.name
        assert msr.sources, msr.name
        if msr.fields:
            assert msr.about, msr.name
            assert msr.category, msr.name
            assert len(msr.sources) >= 2, msr.name


def test_fields_lie_apart_within_64_bits():
    for msr in catalog():
        taken = 0
        for field in msr.fields:
            assert 0 <= field.low <= field.high <= 63
            assert not taken & field.mask, (msr.name, field.name)
            taken |= field.mask
            assert all(0 <= n <= field.mask >> field.low for n in field.values)


NAMES = """
[file]
vendors = ["intel"]
sources = ["a", "b"]

[[msr]]
index = 0x10
name = "A{n}"
count = 2
"""
DETAILS = """
[[msr]]
msr = "A{n}"
about = "x"
fields = [{ bits = "3-0", name = "low" }]
"""


def write(folder, names, details):
    for part, text in (("names", names), ("details", details)):
        (folder / part).mkdir()
        (folder / part / "x.toml").write_text(text)


def test_a_bank_shares_its_details(tmp_path):
    write(tmp_path, NAMES, DETAILS)
    first, second = read_sources(tmp_path)
    assert (first.name, second.name, second.index) == ("A0", "A1", 0x11)
    assert second.fields[0].span == "3:0"


MEANINGS = """
[file]
vendors = ["intel"]
sources = ["a", "b"]

[[msr]]
index = 0x40
name = "OLD"
cpus = ["merom"]

[[msr]]
index = 0x40
name = "NEW"

[[msr]]
index = 0x41
name = "LIMIT"
"""
LAYOUTS = """
[[msr]]
msr = "LIMIT"
about = "client"
cpus = ["haswell..", "intel:06_8F"]

[[msr]]
msr = "LIMIT"
about = "other"
"""


def test_an_index_may_have_several_meanings(tmp_path):
    write(tmp_path, MEANINGS, LAYOUTS)
    found = [(msr.index, msr.name, msr.about, msr.cpus) for msr in read_sources(tmp_path)]
    assert found == [
        (0x40, "NEW", "", ()),
        (0x40, "OLD", "", ("merom",)),
        (0x41, "LIMIT", "other", ()),
        (0x41, "LIMIT", "client", ("haswell..", "intel:06_8F")),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'name = "NEW"',
            'name = "NEW"\ncpus = ["intel:06_0F"]',
            "0x40 is NEW and OLD on intel:06_0F",
        ),
        ('cpus = ["merom"]', "", "0x40 is NEW and OLD"),
        ('"merom"', '"meron"', "OLD: cpus: no CPU is called 'meron'; did you mean merom"),
        ('"merom"', '"zen"', "OLD: cpus: zen is none of intel"),
    ],
)
def test_no_cpu_has_two_meanings_of_an_index(tmp_path, old, new, message):
    assert MEANINGS.count(old) == 1
    write(tmp_path, MEANINGS.replace(old, new), LAYOUTS)
    with pytest.raises(CatalogError, match=re.escape(message)):
        read_sources(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "A{n}"', 'nam = "A{n}"', "x.toml: Object"),
        ("[[msr]]", "[[msr", "x.toml: "),
        ('["intel"]', '["cyrix"]', "vendors must be some of"),
        ('["a", "b"]', "[]", "it has no sources"),
        ('msr = "A{n}"', 'msr = "B"', "details for MSRs that no file names: B"),
        ('name = "low" }', 'name = "low" }, { bits = 2, name = "x" }', "low and x overlap"),
        ('name = "low"', 'name = "low", kind = "odd"', "bits or kind are not valid"),
        ('bits = "3-0"', 'bits = "64"', "bits or kind are not valid"),
        ('name = "low"', 'name = "low", values = { "0" = "2" }', "value's name is a number"),
        ('name = "low"', 'name = "low", form = "odd"', "A{n}.low: form is 'odd'"),
        ('about = "x"', 'about = "x"\nsummary = "odd"', "A{n}: summary is 'odd'"),
        ('about = "x"', 'about = "x"\nscope = "hand"', "scope is 'hand'"),
        ("count = 2", 'count = 2\n[[msr]]\nindex = 0x11\nname = "B"', "0x11 is"),
    ],
)
def test_what_is_wrong_is_reported_with_file_and_entry(tmp_path, old, new, message):
    assert (NAMES + DETAILS).count(old) >= 1
    write(tmp_path, NAMES.replace(old, new), DETAILS.replace(old, new))
    with pytest.raises(CatalogError, match=re.escape(message)):
        read_sources(tmp_path)


def test_a_project_is_named_with_its_edition(tmp_path):
    write(tmp_path, NAMES.replace('"a", "b"', '"edk2 X.h", "edk2 Y.h, 2020", "b"'), DETAILS)
    (tmp_path / "editions.toml").write_text('[editions]\n"edk2" = "2024-07-02"')
    first, _ = read_sources(tmp_path)
    assert first.sources == ("edk2 X.h (2024-07-02)", "edk2 Y.h, 2020", "b")


def test_what_was_read_of_other_projects_can_be_found_again():
    projects = ("edk2 ", "ia32-doc ", "Xen ", "CoreFreq ", "Linux ", "Bochs ", "coreboot ")
    sources = {source for msr in catalog() for source in msr.sources}
    named = [source for source in sources if source.startswith(projects)]
    assert named
    assert [source for source in named if not re.search(r"\)$|20\d\d|^\w+ \d", source)] == []


HEADER = Path("/usr/include/x86_64-linux-gnu/asm/kvm_para.h")


def test_names_mean_what_they_mean_in_linux():
    if not HEADER.exists():
        pytest.skip(f"needs {HEADER}, of Debian's linux-libc-dev")
    found = re.findall(r"^#define\s+(MSR_KVM_\w+)\s+(0x[0-9a-f]+)", HEADER.read_text(), re.M)
    both = [(name, int(number, 0)) for name, number in found if name.lower() in catalog().names()]
    assert len(both) >= 8
    assert [(name, catalog().lookup(name).index) for name, _ in both] == both


def test_looking_one_up_is_quick_to_start():
    """Only what a lookup needs is imported, and not the command line's tables."""
    script = "import sys, kvmsr.msr; kvmsr.msr.catalog(); print('rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
