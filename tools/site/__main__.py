# SPDX-License-Identifier: Apache-2.0
"""
Builds the site: docs/ as it is, and beside it pages for the commands, the MSRs and the library,
which Sphinx fills from the code. Each warning is an error.

    python -m tools.site build/site
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

from tools.site.pages import generated

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"


def stage(folder: Path) -> None:
    """Make *folder* what Sphinx reads; a file that is right already is left alone."""
    wanted = {
        path.relative_to(DOCS): path.read_bytes() for path in DOCS.rglob("*") if path.is_file()
    }
    wanted |= {Path(name): text.encode() for name, text in generated().items()}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def build(target: Path) -> int:
    """Build the site in *target*; Sphinx's own files are beside it. Return the exit status."""
    source = target.with_name(f"{target.name}-source")
    stage(source)
    state = target.with_name(f"{target.name}-state")
    options = ["--fail-on-warning", "--quiet", "-c", DOCS, "-d", state, "-b", "html"]
    return build_main([str(word) for word in (*options, source, target)])


def main() -> int:
    """Build the site in the folder that the command line names."""
    target = Path(sys.argv[1]) if len(sys.argv) == 2 else ROOT / "build/site"
    status = build(target.resolve())
    if status:
        # Sphinx does not warn again about a page that it has read.
        shutil.rmtree(target.with_name(f"{target.name}-state"), ignore_errors=True)
    else:
        print(f"the site is {target}/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
