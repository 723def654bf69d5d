"""The version is the same wherever it is said, and the change log has the form that it claims."""

import re
from datetime import date
from importlib import metadata

from kvmsr import __version__
from tests.conftest import ROOT

CHANGES = (ROOT / "CHANGELOG.md").read_text()
NOTES = next((ROOT / "docs").rglob("release-notes.md")).read_text()
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def headings(text, level):
    return re.findall(rf"^{'#' * level} (.+)$", text, re.MULTILINE)


def test_the_change_log_has_this_version_and_what_is_not_released_above_it():
    unreleased, *versions = headings(CHANGES, 2)
    assert unreleased == "Unreleased"
    names, days = zip(*(one.split(" - ") for one in versions), strict=True)
    assert names[0] == __version__
    assert list(days) == sorted(days, reverse=True)
    for day in days:
        date.fromisoformat(day)
    assert set(headings(CHANGES, 3)) <= KINDS


def test_the_release_notes_begin_with_this_version():
    assert headings(NOTES, 2)[0] == __version__
    assert headings(NOTES, 2) == [one.split(" - ")[0] for one in headings(CHANGES, 2)[1:]]


def test_so_has_what_is_installed():
    assert metadata.version("kvmsr") == __version__


def test_what_the_notes_need_is_what_the_package_needs():
    needs = metadata.metadata("kvmsr")["Requires-Python"].removeprefix(">=")
    assert f"Python {needs} or later" in " ".join(NOTES.split())
