"""A guest that is reset finds its registers as at power-on, unless a rule keeps them."""

import json
import time
from contextlib import suppress

import pytest

from kvmsr import native
from tests.attach.test_ctl import BAD, MSR, SHADOW, Running, bios

__all__ = ("bios",)  # a fixture

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.peer,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

MODEL = f"""
from kvmsr.dispatch.models import Register, RegisterModel

class Cell(RegisterModel):
    one, two = Register({MSR}), Register({MSR + 1})
"""
MODELLED = SHADOW.replace(' = "shadow"', '.model = "cell:Cell"')


def running(tmp_path, qemu, bios, policy):
    (tmp_path / "cell.py").write_text(MODEL)
    (tmp_path / "policy.toml").write_text(policy)
    return Running(tmp_path, qemu, bios, "-action", "reboot=reset")


@pytest.mark.parametrize("policy", [SHADOW, MODELLED], ids=["shadow", "model"])
def test_registers_begin_anew(tmp_path, qemu, bios, policy):
    """The guest counts in registers from 0, so it ends with BAD if they are not reset."""
    with running(tmp_path, qemu, bios, policy) as vm:
        for resets in range(1, 4):
            time.sleep(0.3)
            vm.monitor.ask("system_reset")
            time.sleep(0.2)
            report = json.loads(vm.ctl("summary").stdout)
            assert [one["resets"] for one in report["vms"]] == [resets]
        assert vm.runs_on()
        vm.quit()


@pytest.mark.parametrize("policy", [SHADOW, MODELLED], ids=["shadow", "model"])
def test_a_rule_keeps_its_registers(tmp_path, qemu, bios, policy):
    with running(tmp_path, qemu, bios, f"{policy}keep = true\n") as vm:
        time.sleep(0.3)
        with suppress(EOFError, OSError):  # QEMU may end before it has answered
            vm.monitor.ask("system_reset")
        assert vm.process.wait(20) == BAD << 1 | 1


def test_match_counts_go_on(tmp_path, qemu, bios):
    policy = f'[[rule]]\nmsr = {MSR}\nread = "fault"\nwhen = {{ after = 1000000000 }}\n{SHADOW}'
    with running(tmp_path, qemu, bios, policy) as vm:
        time.sleep(0.3)
        vm.monitor.ask("stop")
        vm.ctl("save", tmp_path / "before")
        vm.monitor.ask("system_reset")
        vm.ctl("save", tmp_path / "after")
        before, after = (
            json.loads((tmp_path / name).read_text())["vms"][0] for name in ("before", "after")
        )
        assert before["shadows"]["values"] and not after["shadows"]["values"]
        assert after["conditions"] == before["conditions"] != {"0.read": 0}
        vm.quit()


def test_a_state_that_was_loaded_without_the_registers_is_noted(tmp_path, qemu, bios):
    snapshot = {"tag": "one", "vmstate": "disk", "devices": ["disk"]}
    with running(tmp_path, qemu, bios, SHADOW) as vm:
        vm.monitor.make_disk(tmp_path / "disk")
        time.sleep(0.3)
        vm.monitor.ask("stop")
        vm.monitor.job("snapshot-save", **snapshot)
        vm.ctl("save", tmp_path / "saved")
        vm.monitor.job("snapshot-load", **snapshot)
        [note] = json.loads(vm.ctl("summary").stdout)["notes"]
        assert note.startswith("the VMM loaded a saved state into a VM")
        vm.ctl("load", tmp_path / "saved")
        assert not json.loads(vm.ctl("summary").stdout)["notes"]
        assert vm.runs_on()
        vm.quit()
