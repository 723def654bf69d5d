# SPDX-License-Identifier: Apache-2.0
"""What the site's pages may contain beyond Markdown: commands, MSRs, and the library's face."""

from importlib import import_module

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish
from sphinx.util.docutils import SphinxDirective, switch_source_input

import kvmsr
from tools.site.command import described
from tools.site.msrs import index_table, indexed, page
from tools.site.nodes import html, index
from tools.site.pages import MODULES, RANGES, home


class CommandDirective(SphinxDirective):
    """A command, with its subcommands."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return described(self.arguments[0])


class MsrsDirective(SphinxDirective):
    """The MSRs of a range."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        first, last = (int(word, 16) for word in self.arguments)
        return [index(indexed(first, last)), html(page(first, last))]


class MsrIndexDirective(SphinxDirective):
    """All MSRs, with links to their descriptions."""

    def run(self) -> list[nodes.Node]:
        return [html(index_table((each.first, each.last, each.page) for each in RANGES))]


class FaceDirective(SphinxDirective):
    """What ``import kvmsr`` gives, with links to the modules that define it."""

    def run(self) -> list[nodes.Node]:
        lines = StringList()
        for name in sorted(set(kvmsr.__all__) - {"__version__"}):
            found = getattr(kvmsr, name)
            module = next(each for each in MODULES if name in import_module(each).__all__)
            about = (found.__doc__ or "").strip().splitlines()[0].removesuffix("::")
            line = f"* :py:obj:`{name} <{home(module, name)}.{name}>`: {about}"
            lines.append(line, __name__)
        made = nodes.container()
        with switch_source_input(self.state, lines):
            self.state.nested_parse(lines, 0, made)
        return [made]


class Search(SearchEnglish):
    """Finds words by their stems, but numbers and names as they are: of most MSRs' words."""

    def stem(self, word: str) -> str:
        return super().stem(word) if word.isalpha() else word


def without_title(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Take the underlined title from a module's docstring: the page has one."""
    if what == "module":
        while lines and not lines[0].strip():
            del lines[0]
        if len(lines) > 1 and set(lines[1]) == {"-"}:
            del lines[:2]


def with_levels(app: Sphinx, page: str, template: str, context: dict, tree: object) -> None:
    """Say which level the captions of the navigation have, for who has it read aloud."""
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("kvmsr_code", "", "env", str)
    app.add_search_language(Search)
    app.add_directive("kvmsr-command", CommandDirective)
    app.add_directive("kvmsr-msrs", MsrsDirective)
    app.add_directive("kvmsr-msr-index", MsrIndexDirective)
    app.add_directive("kvmsr-face", FaceDirective)
    app.connect("html-page-context", with_levels, priority=900)  # after furo has made it
    app.connect("autodoc-process-docstring", without_title)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
