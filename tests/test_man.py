"""The man pages: each command has one, with all of its options, and troff has no complaints."""

import importlib.util
import re
import subprocess

import click
import pytest

from kvmsr import errors
from kvmsr.session import result
from tests.conftest import ROOT, need

SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "SEE ALSO"]


def load():
    spec = importlib.util.spec_from_file_location("make_man", ROOT / "tools/make_man.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_man = load()
PAGES = [pytest.param(page, id=page.name) for page in make_man.pages()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("man")
    for page in make_man.pages():
        (folder / f"{page.name}.1").write_text(make_man.render(page))
    return folder


def shown(path):
    """Return a page as people see it, on lines so long that nothing is broken."""
    words = ["groff", "-mandoc", "-ww", "-Kutf8", "-Tutf8", "-P-cbou", "-rLL=999n", path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_sections_and_every_option(page, folder):
    need("groff")
    text = shown(folder / f"{page.name}.1")
    found = re.findall(r"^([A-Z][A-Z ]+)$", text, re.MULTILINE)
    assert [name for name in found if name in SECTIONS] == SECTIONS
    assert re.search(rf"^ +{page.name} - \S", text, re.MULTILINE)
    assert f"{page.path} [OPTIONS]" in text
    for option in page.command.get_params(page.context):
        if isinstance(option, click.Option):
            for name in (*option.opts, *option.secondary_opts):
                assert re.search(rf"^ +(\S+, |--\S+ / )?{re.escape(name)}\b", text, re.MULTILINE)
            assert " ".join(option.help.split()).split(";")[0] in text
    for example in re.findall(r"kvmsr .*", page.command.epilog):
        assert example in text


def test_every_command_has_a_page(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"kvmsr.1", "kvmsr-run.1", "kvmsr-trace-show.1", "kvmsr-ctl-stop.1"} <= names
    for name in sorted(names - {"kvmsr.1"}):
        page = name.removesuffix(".1")
        above = (folder / f"{page.rpartition('-')[0]}.1").read_text()
        assert f"{make_man.text(page)}\\fR(1)" in above.partition(".SH COMMANDS")[2]


def test_mandoc_has_no_complaints(folder):
    need("mandoc")
    words = ["mandoc", "-Tlint", "-Wwarning", *sorted(folder.iterdir())]
    done = subprocess.run(words, capture_output=True, text=True)
    # There is no date before a release.
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == []


def test_exit_statuses_are_those_of_the_documentation(folder):
    known = {status for status, _ in make_man.statuses()}
    raised = {
        one.exit_status
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.KvmsrError)
    }
    assert {str(status) for status in raised} | {"0", "130"} == known
    runs = dict(make_man.statuses("Running a guest"))
    for status in (result.CRASHED, result.FAILED, result.TIMEOUT, result.INTERRUPTED):
        assert str(status) in runs
    assert make_man.text(runs["6"]) in (folder / "kvmsr-run.1").read_text()
