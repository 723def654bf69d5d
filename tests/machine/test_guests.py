"""The guests that ship with the package are what their sources build."""

import subprocess

import pytest

from kvmsr.machine.probe import CASES
from tests.conftest import GUESTS, ROOT, need


def test_the_images_are_what_the_sources_build(tmp_path):
    for tool in ("make", "as", "ld", "objcopy"):
        need(tool)
    subprocess.run(
        ["make", "-s", "-C", ROOT / "guests", f"OUT={tmp_path}"], check=True, capture_output=True
    )
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {
        path.name: path.read_bytes() for path in GUESTS.iterdir() if path.suffix in (".bin", ".elf")
    }
    assert built.keys() == committed.keys()
    for name in built:
        assert built[name] == committed[name], f"{name}: run make guests"


def test_the_probe_has_a_case_for_each_name():
    source = (ROOT / "guests/probe.S").read_text()
    listed = [
        label.strip().removeprefix("case_")
        for line in source.split("cases:")[1].splitlines()
        if ".quad" in line
        for label in line.split(".quad")[1].split(",")
    ]
    listed = listed[: len(CASES)]
    assert listed == ["baseline", *(name for name, _ in CASES[1:])]


@pytest.mark.parametrize("name", ["modes.bin", "loop.bin"])
def test_flat_guests_fit_where_they_are_loaded(name):
    assert len((GUESTS / name).read_bytes()) < 0x2000
