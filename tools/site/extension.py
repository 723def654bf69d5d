# SPDX-License-Identifier: Apache-2.0
"""What the site's pages may contain beyond Markdown: commands, MSRs, and the library's face."""

import kvmsr
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tools.site.command import described
from tools.site.msrs import index_table, sections
from tools.site.pages import MODULES, RANGES


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
        return sections(first, last)


class MsrIndexDirective(SphinxDirective):
    """All MSRs, with links to their descriptions."""

    def run(self) -> list[nodes.Node]:
        return [index_table(RANGES)]


class FaceDirective(SphinxDirective):
    """What ``import kvmsr`` gives, with links to the modules that define it."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        lines = []
        for name in sorted(set(kvmsr.__all__) - {"__version__"}):
            found = getattr(kvmsr, name)
            home = next(module for module in MODULES if module != "kvmsr" and has(module, name))
            summary = (found.__doc__ or "").strip().splitlines()[0].removesuffix("::")
            lines.append(f"* :py:obj:`{name} <{home}.{name}>`: {summary}")
        block = nodes.container()
        content = StringList([*lines, ""], source=__name__)
        from docutils.parsers.rst import Parser  # the page itself is Markdown
        from docutils.utils import new_document

        document = new_document(__name__, self.state.document.settings)
        Parser().parse("\n".join(content), document)
        block += document.children
        return [block]


def has(module: str, name: str) -> bool:
    import importlib

    return name in importlib.import_module(module).__all__


def without_title(app: Sphinx, what: str, name: str, obj: object, options: object,
                  lines: list[str]) -> None:
    """Take the underlined title from a module's docstring: the page has one."""
    if what == "module":
        while lines and not lines[0].strip():
            del lines[0]
        if len(lines) > 1 and set(lines[1]) == {"-"}:
            del lines[:2]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("kvmsr-command", CommandDirective)
    app.add_directive("kvmsr-msrs", MsrsDirective)
    app.add_directive("kvmsr-msr-index", MsrIndexDirective)
    app.add_directive("kvmsr-face", FaceDirective)
    app.connect("autodoc-process-docstring", without_title)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
