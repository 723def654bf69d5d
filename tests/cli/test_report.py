"""kvmsr report, as users call it."""

import subprocess
import sys

import pytest

from tests.conftest import GUESTS
from tests.trace.file.made import events, trace
from tests.trace.report.conftest import boot

BAD = 3
USAGE = 2


def report(*words):
    done = subprocess.run(
        [sys.executable, "-m", "kvmsr", "report", *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_a_page(tmp_path):
    page = tmp_path / "report.html"
    done = report(boot(tmp_path / "a"), "-o", page)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{page}: {page.stat().st_size / 1e3:,.0f} kB\n"
    assert "MSR accesses of one run" in page.read_text()


def test_a_page_about_two(tmp_path):
    page = tmp_path / "report.html"
    done = report(boot(tmp_path / "a"), boot(tmp_path / "b"), "-o", page)
    assert done.returncode == 0
    assert "Two runs compared" in page.read_text()


def test_a_page_about_a_real_run(tmp_path, backend):
    (tmp_path / "p.toml").write_text("[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n")
    words = "--append", "0x35 0x9999", "--policy", "p.toml", "--trace", "run.arrows", "--trace-rip"
    subprocess.run(
        [sys.executable, "-m", "kvmsr", "run", GUESTS / "list.elf", "--backend", backend, *words],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert report(tmp_path / "run.arrows", "-o", tmp_path / "report.html").returncode == 0
    page = (tmp_path / "report.html").read_text()
    assert 'id="m35"' in page
    assert 'id="m9999"' in page
    assert "1 of 1 rule decided an access." in page
    assert "1 read left to defaults.unknown; all faulted." in page


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "damaged", "folder", "newer"])
def test_bad_files(tmp_path, kind):
    path = tmp_path / "bad"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        path.write_text("[[rule]]\nmsr = 1\n")
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        trace(path, events(100))
        old, new = {"damaged": (b"filter", b"filtre"), "newer": (b'"schema":1', b'"schema":9')}[
            kind
        ]
        path.write_bytes(path.read_bytes().replace(old, new))
    page = tmp_path / "report.html"
    good = boot(tmp_path / "good", 20)
    for words in ([path], [good, path]):
        done = report(*words, "-o", page)
        assert done.returncode == BAD
        assert done.stderr.startswith(f"kvmsr: {path}: ")
        assert done.stderr.count("\n") == 1
        assert not page.exists()
        assert sorted(one.name for one in tmp_path.iterdir()) in (["bad", "good"], ["good"])


def test_bad_places(tmp_path):
    path = boot(tmp_path / "a", 20)
    before = path.read_bytes()
    for output in (path, tmp_path, tmp_path / "no" / "page.html"):
        done = report(path, "-o", output)
        assert done.returncode == USAGE
        assert done.stderr.startswith(f"kvmsr: -o {output}: ")
        assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before


def test_help_is_fast():
    script = "import sys; from kvmsr.cli import main\ntry: main(['report', '--help'])\n"
    script += "finally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "compare" in done.stdout
    assert not {"numpy", "jinja2", "nanoarrow", "kvmsr.trace"} & set(done.stderr.split())


def test_who_asked_has_a_name(tmp_path):
    """In the tables, in the details and in the timeline; a name cannot be markup."""
    base = 0xFFFFFFFF81000000
    functions = tmp_path / "System.map"
    names = ("native_read_msr", "init_<b>amd", "start_kernel")
    functions.write_text(
        "".join(f"{base + n * 256:016x} t {name}\n" for n, name in enumerate(names))
    )
    made = events(40, callers=2)
    made["rip"], made["n_callers"], made["guesses"], made["outcome"] = base + 5, 2, 1, 2
    made["callers"][:, :2] = base + 256 + 9, base + 512 + 9
    page = tmp_path / "report.html"
    done = report(trace(tmp_path / "a", made), "--symbols", functions, "-o", page)
    assert (done.returncode, done.stderr) == (0, "")
    text = page.read_text()
    path = "native_read_msr+0x5 ← init_&lt;b&gt;amd? ← start_kernel"
    assert f"<code>{path}</code>" in text
    assert '"native_read_msr+0x5 \\u2190 init_\\u003cb\\u003eamd? \\u2190 start_kernel"' in text
    assert "init_<b>" not in text
    done = report(tmp_path / "a", "--symbols", page, "-o", tmp_path / "other.html")
    assert done.returncode == BAD
    assert "there are no functions" in done.stderr
    assert not (tmp_path / "other.html").exists()
