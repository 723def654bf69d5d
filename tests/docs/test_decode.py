"""docs/reference/decode.md: its commands print what it shows."""

import importlib.util

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs/reference/decode.md"

spec = importlib.util.spec_from_file_location("renew_docs", ROOT / "tools/renew_docs.py")
renew_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(renew_docs)

COMMANDS = renew_docs.commands(PAGE.read_text())


def test_there_are_twenty_msrs_or_more():
    assert len({command.split()[3] for command, _ in COMMANDS}) >= 20


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=[one for one, _ in COMMANDS])
def test_the_page_shows_what_a_command_prints(command, shown):
    assert renew_docs.output(command) == shown, "tools/renew_docs.py renews the page"
