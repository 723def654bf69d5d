"""``kvmsr wrap`` and libvirt: a daemon of the test's own, virsh, and real domains."""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.qemu import LIST, POLICY, SEEN, SLOW, WORDS, wait_for_lines
from tests.attach.test_ctl import SHADOW, counting_bios
from tests.command import kvmsr
from tests.conftest import need, peer

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.peer,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>tried</name>
  <memory unit='MiB'>64</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <loader readonly='yes' type='rom'>{bios}</loader>
    {boots}
  </os>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='{folder}/serial'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='isa-debug-exit,iobase=0x501,iosize=1'/>
  </qemu:commandline>
</domain>
"""


class Libvirt:
    """A libvirtd of qemu:///session, which no other one has to do with."""

    def __init__(self, start, folder, qemu):
        self.folder, self.qemu = folder, qemu
        path = f"{os.environ['PATH']}:/usr/sbin"
        daemon = need_in(path, "libvirtd")
        self.unprivileged = unprivileged()
        self.home = Path(tempfile.mkdtemp(prefix="kvmsr-"))  # sockets need short names
        kinds = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
        for name in kinds.values():
            (self.home / name).mkdir()
        homes = {kind: f"{self.home}/{name}" for kind, name in kinds.items()}
        self.environment = {"PATH": path, "HOME": str(self.home)}
        self.environment |= homes | {"LIBVIRT_AUTOSTART": "0"}  # virsh is to start none itself
        with (folder / "libvirtd.log").open("w") as log:
            start([*self.unprivileged, daemon], env=self.environment, stdout=log, stderr=log)
        for _ in range(100):
            if not self.virsh("list", check=False).returncode:
                return
            time.sleep(0.1)
        raise AssertionError((folder / "libvirtd.log").read_text())

    def virsh(self, *words, check=True):
        words = [*self.unprivileged, "virsh", "-c", "qemu:///session", *map(str, words)]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, env=self.environment
        )
        assert not check or not done.returncode, done.stderr + self.log()
        return done

    def define(self, policy, *options, boots="", bios="bios-microvm.bin"):
        """Define the domain, with an emulator that `kvmsr wrap` has written."""
        folder = self.folder
        vmm, emulator = folder / "qemu", folder / "emulator"
        vmm.write_text(f'#!/bin/sh\nexec {shlex.join(self.qemu)} "$@"\n')
        vmm.chmod(0o755)
        (folder / "slow.py").write_text(SLOW)
        (folder / "policy.toml").write_text(policy)
        kvmsr(
            "wrap", vmm, "-o", emulator, "--policy", folder / "policy.toml", "--json",
            "--summary", folder / "summary.json", *options,
        )  # fmt: skip
        text = DOMAIN.format(emulator=emulator, folder=folder, boots=boots, bios=bios)
        (folder / "domain.xml").write_text(text)
        self.virsh("define", folder / "domain.xml")

    def state(self):
        return self.virsh("domstate", "tried").stdout.strip()

    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())

    def log(self):
        """Return libvirt's log of the domain, which has the VMM's standard error."""
        with suppress(OSError):
            return (self.home / "cache/libvirt/qemu/log/tried.log").read_text()
        return ""

    def close(self):
        self.virsh("destroy", "tried", check=False)
        shutil.rmtree(self.home)


def need_in(path, tool):
    found = shutil.which(tool, path=path)
    return found or pytest.skip(f"needs {tool}")


def unprivileged():
    """Return the words that run a program as a user who is not root: root has no session."""
    if os.geteuid():
        return []
    words = [need("unshare"), "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces, because the tests are run by root")
    return words


@pytest.fixture
def libvirt(start, tmp_path, qemu):
    need("virsh")
    running = Libvirt(start, tmp_path, qemu)
    yield running
    running.close()


def test_a_guest_of_libvirts(tmp_path, libvirt):
    """libvirt starts it with all switches of -sandbox; a handler takes more than a second."""
    boots = f"<kernel>{LIST}</kernel><cmdline>{WORDS}</cmdline>"
    libvirt.define(POLICY, boots=boots, bios=peer("seabios", "**/bios-microvm.bin"))
    libvirt.virsh("start", "tried")
    assert wait_for_lines(tmp_path, len(SEEN)) == SEEN
    libvirt.virsh("destroy", "tried")
    report = libvirt.summary()
    assert (report["exit"]["kind"], report["notes"]) == ("vmm", [])
    assert "-sandbox on" in report["image"]
    assert {row["rule"] for row in report["accesses"]} >= {"policy.toml:2", "policy.toml:12"}


def test_the_life_of_a_domain(tmp_path, libvirt):
    """The guest ends itself if a register has another value than it has written."""
    kept = tmp_path / "state"
    libvirt.define(SHADOW, "--state", kept, bios=counting_bios(tmp_path))
    counts = []
    for _ in range(2):  # the second time its registers are as at power-on again
        libvirt.virsh("start", "tried")
        time.sleep(0.3)
        libvirt.virsh("suspend", "tried")
        assert libvirt.state() == "paused"
        libvirt.virsh("resume", "tried")
        time.sleep(0.3)
        assert libvirt.state() == "running"
        libvirt.virsh("save", "tried", tmp_path / "saved")
        assert libvirt.state() == "shut off"
        counts.append(libvirt.summary()["totals"]["reads"])
        libvirt.virsh("restore", tmp_path / "saved")
        time.sleep(0.3)
        assert libvirt.state() == "running"
        libvirt.virsh("destroy", "tried")
        counts.append(libvirt.summary()["totals"]["reads"])
    assert min(counts) > 100

    # The guest does notice: here its registers have not been kept with it.
    libvirt.virsh("start", "tried")
    time.sleep(0.3)
    libvirt.virsh("save", "tried", tmp_path / "saved")
    kept.unlink()
    libvirt.virsh("restore", tmp_path / "saved", check=False)
    time.sleep(0.3)
    assert libvirt.state() == "shut off"
