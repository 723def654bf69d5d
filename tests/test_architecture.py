"""The rules of the house: who may import whom, and where raw memory is touched."""

import ast
import importlib
import subprocess
import sys

import pytest

import kvmsr
from tests.conftest import PACKAGE, ROOT

# Each room and the rooms below it. Two towers, mechanics and knowledge, meet in `session`; on it
# `machine`, `attach` and `live` stand side by side; `cli` is the roof.
GROUND = {"decompress", "errors", "files", "symbols", "text"}
MECHANICS = {"abi", "backend", "kvm", *GROUND}
KNOWLEDGE = {"msr", "policy", "policy.file", "policy.plan", "dispatch", "trace", "native", *GROUND}
BELOW = {
    "text": set(),
    "files": set(),
    "errors": {"text"},
    "decompress": {"errors"},
    "symbols": {"decompress", "errors", "files", "text"},
    "_version": set(),
    "abi": GROUND,
    "backend": {"abi", *GROUND},
    "kvm": {"backend", "abi", *GROUND},
    "msr": GROUND,
    "policy": {"msr", *GROUND},
    "policy.file": {"policy", "msr", *GROUND},
    "policy.plan": {"policy", "msr", *GROUND},
    "dispatch": {"policy.plan", "policy", "msr", *GROUND},
    "trace": {"dispatch", "policy.plan", "policy", "msr", *GROUND},
    # A trace has the text of its policy. A report parses that, the rest of the room does not.
    "trace.report": {"trace", "dispatch", "policy.file", "policy.plan", "policy", "msr", *GROUND},
    "native": {"trace", "dispatch", "policy.plan", "policy", "msr", *GROUND},
    "session": {*MECHANICS, *KNOWLEDGE, "_version"},
    "machine": {"session", "_version", *MECHANICS, *KNOWLEDGE},
    "attach": {"session", *MECHANICS, *KNOWLEDGE},
    "live": {"session", *MECHANICS, *KNOWLEDGE},
    "cli": {"machine", "attach", "live", "session", "trace.report"}
    | MECHANICS
    | KNOWLEDGE
    | {"_version"},
}

RAW = {"ctypes", "mmap"}
MAY_TOUCH_RAW_MEMORY = {"native", "abi", "backend"}
OPEN_NOTHING = {"abi", "msr", "policy"}

LONGEST = 400  # lines of a file

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(parts):
    """Return the innermost room that a module is in."""
    inner = ".".join(parts[:2])
    return inner if inner in BELOW else parts[0]


def rooms_imported(path):
    for name in imports(path):
        parts = name.split(".")
        if (
            parts[0] == "kvmsr"
            and len(parts) > 1
            and (PACKAGE / parts[1]).exists() | (PACKAGE / f"{parts[1]}.py").exists()
        ):
            yield room_of(parts[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    own = room(path)
    assert set(rooms_imported(path)) - {own} <= BELOW[own]


def test_every_room_is_in_the_plan():
    rooms = {room(path) for path in FILES}
    assert rooms <= set(BELOW)


def module(path):
    """Return the name of a file's module, or of its package for an __init__.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files_imported(path, modules):
    """
    Return the modules that a file imports from, wherever in it, for type checking or not.

    ``from kvmsr.abi import cpu`` is an import of the file cpu.py, where there is one; and only if
    there is none, of the package's __init__.py, which has the name.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules


def circles(imported):
    """Return the sets of modules that import each other, directly or by way of others (Tarjan)."""
    order, lowest, stack, found = {}, {}, [], []

    def visit(one):
        order[one] = lowest[one] = len(order)
        stack.append(one)
        for other in sorted(imported[one]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[one] = min(lowest[one], lowest[other])
        if lowest[one] == order[one]:
            at = stack.index(one)
            found.append(stack[at:])
            del stack[at:]

    for one in sorted(imported):
        if one not in order:
            visit(one)
    return [sorted(circle) for circle in found if len(circle) > 1]


def test_no_files_import_each_other():
    files = {module(path): path for path in PACKAGE.rglob("*.py")}
    imported = {name: files_imported(path, files.keys()) - {name} for name, path in files.items()}
    assert circles(imported) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}) == [
        ["a", "b", "c"]
    ]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_raw_memory_is_touched_in_the_cellar_only(path):
    if room(path) not in MAY_TOUCH_RAW_MEMORY:
        assert not RAW & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", sorted(OPEN_NOTHING))
def test_rooms_that_run_anywhere_open_nothing_and_start_no_thread(name):
    script = f"""
import os, threading
before = len(os.listdir("/proc/self/fd"))
import kvmsr.{name}, pkgutil, importlib
for module in pkgutil.walk_packages(kvmsr.{name}.__path__, "kvmsr.{name}."):
    importlib.import_module(module.name)
assert len(os.listdir("/proc/self/fd")) == before
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_say_what_they_are_and_what_they_export(path):
    text = path.read_text()
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    module = importlib.import_module(
        ".".join(["kvmsr", *path.relative_to(PACKAGE).with_suffix("").parts])
    )
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name
    assert len(text.splitlines()) <= LONGEST


def test_the_face_is_what_the_documentation_promises():
    text = (ROOT / "docs/reference/library.md").read_text()
    table = text.split("<!-- names -->")[1].split("<!-- end of names -->")[0]
    promised = {
        name for line in table.splitlines() if line.startswith("| `") for name in names(line)
    }
    assert promised == set(kvmsr.__all__) - {"__version__"}
    for name in kvmsr.__all__:
        assert getattr(kvmsr, name) is not None
    with pytest.raises(AttributeError, match="did you mean 'Policy'"):
        kvmsr.Polcy  # noqa: B018


def names(line):
    return [part.strip(" `") for part in line.split("|")[1].split(",")]


def test_the_project_speaks_of_itself_alone():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".S", ".inc", ".sh", "") and path.is_file():
            text = path.read_text(errors="replace")
            for word in ("/".join(("", "work", "main")), "/".join(("..", "shared"))):
                assert word not in text, (name, word)
