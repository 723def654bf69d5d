"""tools/fetch_peers.py, with Debian's real apt and package sources of our own, sound and broken."""

import hashlib
import importlib.util
import subprocess
from email.utils import formatdate

import pytest

from tests.conftest import ROOT, need

CONTROL = "Package: {}\nVersion: 1\nArchitecture: amd64\nMaintainer: kvmsr\nDescription: a test\n"


@pytest.fixture
def fetcher(monkeypatch):
    for tool in ("apt-get", "dpkg-deb"):
        need(tool)
    spec = importlib.util.spec_from_file_location("fetch_peers", ROOT / "tools/fetch_peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAUSE", 0)
    monkeypatch.setattr(module, "TRIES", 3)
    monkeypatch.setattr(module, "REQUIRED", False)
    return module


class Source:
    """A package source in a folder, for amd64 and i386."""

    def __init__(self, folder):
        self.folder = folder
        self.lists = dict.fromkeys(["amd64", "i386"], CONTROL.format("another") + "\n")
        self.publish()

    def add(self, package, content):
        tree = self.folder / package
        for name, text in ((content, "it"), ("DEBIAN/control", CONTROL.format(package))):
            (tree / name).parent.mkdir(parents=True)
            (tree / name).write_text(text)
        deb = self.folder / f"{package}_1_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", tree, deb], check=True, capture_output=True)
        data = deb.read_bytes()
        about = {
            "Filename": deb.name, "Size": len(data), "SHA256": hashlib.sha256(data).hexdigest()
        }  # fmt: skip
        lines = "".join(f"{key}: {value}\n" for key, value in about.items())
        self.lists["amd64"] += f"{CONTROL.format(package)}{lines}\n"
        self.publish()

    def publish(self, unfinished=()):
        """Write the lists; those of *unfinished* architectures are not yet what Release says."""
        release = "Suite: x\nCodename: x\nArchitectures: amd64 i386\nComponents: main\n"
        release += f"Date: {formatdate(usegmt=True)}\nSHA256:\n"
        for arch, text in self.lists.items():
            place = f"main/binary-{arch}/Packages"
            path = self.folder / "dists/x" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n" * (arch in unfinished))
            digest = hashlib.sha256(text.encode()).hexdigest()
            release += f" {digest} {len(text)} {place}\n"
        (self.folder / "dists/x/Release").write_text(release)

    @property
    def line(self):
        return f"deb [trusted=yes] file:{self.folder} x main\n"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Return two sources, and make them this system's only ones; one has busybox."""
    ours, other = Source(tmp_path / "ours"), Source(tmp_path / "other")
    ours.add("busybox-static", "bin/busybox")
    (tmp_path / "sources.list").write_text(ours.line + other.line)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/nowhere";\n'
        'APT::Architectures { "amd64"; "i386"; };\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return ours, other


def test_a_broken_list_of_an_architecture_that_nobody_needs_is_not_read(fetcher, sources, tmp_path):
    for source in sources:
        source.publish(unfinished=["i386"])
    apt = fetcher.Apt(tmp_path / "apt")
    assert "Hash Sum mismatch" in apt.call("apt-get", "-oAPT::Architectures=i386", "update").stderr
    apt.update()
    assert apt.complaint == ""


def test_another_source_may_be_broken(fetcher, sources, tmp_path, capsys):
    sources[1].publish(unfinished=["amd64"])
    apt = fetcher.Apt(tmp_path / "apt")
    apt.update()
    assert "Hash Sum mismatch" in apt.complaint
    fetcher.main([str(tmp_path / "peers"), "busybox"])
    assert (tmp_path / "peers/busybox/bin/busybox").read_text() == "it"
    assert "CANNOT" not in capsys.readouterr().out


def test_a_peer_that_cannot_be_had_is_named_with_the_reason(fetcher, sources, tmp_path, capsys):
    sources[0].publish(unfinished=["amd64"])
    fetcher.main([str(tmp_path / "peers"), "busybox", "seabios"])
    *tries, busybox, seabios = capsys.readouterr().out.splitlines()
    assert sum("trying again" in line for line in tries) == fetcher.TRIES - 1
    assert busybox.startswith("busybox: CANNOT BE HAD: Unable to locate package busybox-static")
    assert "Hash Sum mismatch" in busybox
    assert seabios.startswith("seabios: CANNOT BE HAD: Unable to locate package seabios")


def test_what_failed_is_tried_again_at_once_and_the_next_time(
    fetcher, sources, tmp_path, monkeypatch
):
    ours, _ = sources
    ours.publish(unfinished=["amd64"])
    peers = [str(tmp_path / "peers"), "busybox"]
    fetcher.main(peers)
    assert not fetcher.here(tmp_path / "peers", "busybox")
    monkeypatch.setattr(fetcher.time, "sleep", lambda seconds: ours.publish())
    fetcher.main(peers)
    assert fetcher.here(tmp_path / "peers", "busybox")


def test_a_peer_that_must_be_had_fails_the_run(fetcher, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(fetcher, "REQUIRED", True)
    fetcher.main([str(tmp_path / "peers"), "busybox"])
    with pytest.raises(SystemExit, match="KVMSR_REQUIRE_PEERS"):
        fetcher.main([str(tmp_path / "peers"), "busybox", "seabios"])


def test_without_apt_it_says_so(fetcher, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    fetcher.main([str(tmp_path / "peers"), "busybox"])
    assert "busybox: CANNOT BE HAD: this is no Debian system" in capsys.readouterr().out


def test_without_a_compiler_it_says_so(fetcher, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    fetcher.main([str(tmp_path / "peers"), "selftests"])
    end = "selftests: CANNOT BE HAD: to build it takes gcc, make, strip, xz\n"
    assert capsys.readouterr().out == end
