# SPDX-License-Identifier: Apache-2.0
"""
The controller
--------------

Starts a VMM with the shim, answers what takes Python, and tells what happened.

The VMM's process writes into the shared memory. It runs with the same rights as this one, but it
hosts an adversary: whatever is read from there may be nonsense, and must not do harm here.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kvmsr import native
from kvmsr.attach.control import ControlServer
from kvmsr.attach.in_force import InForce
from kvmsr.attach.state import load_state, parse_state, save_state
from kvmsr.dispatch import Sink, Verdict
from kvmsr.errors import BackendError, UsageError
from kvmsr.machine.result import FAILED, End, EndKind, RunResult
from kvmsr.native.block import Block
from kvmsr.native.questions import access_of
from kvmsr.native.summary import native_summary
from kvmsr.native.table import Names
from kvmsr.policy import Access, Policy
from kvmsr.policy.file import load_policy

__all__ = ("Controller",)

_MAX_VCPUS: Final = 1024
_PAUSE: Final = 0.05
_WAIT_MS: Final = 100
_GRACE: Final = 5.0
_KEPT: Final = 8
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)


class Controller:
    """
    Runs a VMM whose guests are under a policy; once.

    :param command: the VMM and its arguments.
    :param log: takes the accesses that the policy wants told.
    :param state: where registers are kept from one run to the next.
    :param output_to_stderr: whether the VMM's standard output goes to standard error.
    :raises HostError: if the host lacks what is needed.
    :raises PolicyError: if the policy does not fit this KVM.
    """

    def __init__(
        self,
        command: Sequence[str],
        policy: Policy,
        *,
        log: Sink | None = None,
        state: Path | None = None,
        output_to_stderr: bool = False,
    ) -> None:
        if not native.available() or not native.SHIM.exists():
            raise BackendError(native.why_not() or f"{native.SHIM} is missing: install kvmsr anew")
        if set(" :") & set(str(native.SHIM)):
            raise UsageError(
                f"{native.SHIM} cannot be preloaded: its path has a space or colon in it; install"
                " kvmsr elsewhere"
            )
        self._command = list(command)
        self._log = log
        self._to_stderr = output_to_stderr
        self._state = state
        kept = load_state(state) if state is not None and state.exists() else None
        self._names = Names()
        self._block = Block(_MAX_VCPUS)
        self._changing = threading.Lock()
        self._now = InForce(policy, self._block, self._names, 0, log)
        self._by_serial = {0: self._now}
        self._over_with: list[InForce] = []
        self._now.install()
        if kept is not None:
            self._now.restore(kept)
        self._stop: End | None = None
        self._begun = time.monotonic()
        self._over = False

    def run(self) -> RunResult:
        """Run the VMM to its end."""
        self._begun = time.monotonic()
        ours, theirs = socket.socketpair()
        with ours:
            before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
            # A Ctrl-C goes to all processes of the terminal: what it means is the VMM's to say.
            before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
            server = ControlServer(self._control)
            try:
                with theirs:
                    self._vmm = self._start(theirs.fileno())
                self._serve()
            finally:
                self._over = True
                server.close()
                for number, handler in before.items():
                    signal.signal(number, handler)
        if self._state is not None:
            save_state(self._state, self._now.state())
        return self._result(self._end_now(), time.monotonic() - self._begun)

    def close(self) -> None:
        """Give everything back."""
        self._block.close()
        for one in (*self._over_with, *self._by_serial.values()):
            one.close()

    # The VMM

    def _start(self, life: int) -> subprocess.Popen[bytes]:
        preload = ":".join(filter(None, (str(native.SHIM), os.environ.get("LD_PRELOAD"))))
        environment = os.environ | {
            "LD_PRELOAD": preload,
            "KVMSR_BLOCK": f"{os.getpid()}:{self._block.fd}",
            "KVMSR_LIFE": str(life),
        }
        sys.stdout.flush()
        try:
            return subprocess.Popen(
                self._command,
                env=environment,
                pass_fds=(life, self._block.fd),
                stdout=sys.stderr.fileno() if self._to_stderr else None,
            )
        except OSError as error:
            raise UsageError(f"{self._command[0]}: cannot start it: {error.strerror}") from None

    def _pass_on(self, number: int, frame: object) -> None:
        self._vmm.send_signal(number)

    def _serve(self) -> None:
        """Serve vCPUs until the VMM has ended."""
        served = 0
        stopping = 0.0
        while True:
            try:
                self._vmm.wait(_PAUSE)
            except subprocess.TimeoutExpired:
                pass
            vcpus = list(self._block.vcpus())
            for vcpu in vcpus[served:]:
                threading.Thread(target=self._answer, args=(vcpu,), daemon=True).start()
            served = len(vcpus)
            self._tell(vcpus)
            if self._vmm.returncode is not None and not self._in_background(vcpus):
                return
            if self._stop is not None and not stopping:
                self._vmm.terminate()
                stopping = time.monotonic()
            elif stopping and time.monotonic() - stopping > _GRACE:
                self._vmm.kill()

    def _in_background(self, vcpus: list[Any]) -> bool:
        """Tell whether the VMM has forked, as ``-daemonize`` has it, and goes on."""
        others = {vcpu.pid for vcpu in vcpus} - {0, self._vmm.pid}
        return any(Path(f"/proc/{pid}").exists() for pid in others)

    def _tell(self, vcpus: list[Any]) -> None:
        event = native.ffi.new("struct kvmsr_event *")
        for vcpu in vcpus:
            while native.lib.kvmsr_next_event(vcpu, event):
                policy = self._by_serial.get(event.serial)
                if policy is None or event.op > 1 or event.reason > 2 or event.verdict > 3:
                    continue
                raw = native.ffi.new(
                    "struct kvmsr_access *",
                    (event.value, vcpu.id, event.index, event.op, event.reason),
                )
                policy.vm(0).tell(access_of(raw), event)

    # Questions

    def _answer(self, vcpu: Any) -> None:
        """Answer the questions of one vCPU; a thread of its own does."""
        lib, ffi = native.lib, native.ffi
        asked = ffi.new("struct kvmsr_upcall *")  # what is there may change while it is read
        while not self._over:
            question = lib.kvmsr_await_question(vcpu, _WAIT_MS)
            if not question:
                continue
            ffi.memmove(asked, ffi.addressof(vcpu, "upcall"), ffi.sizeof("struct kvmsr_upcall"))
            if not self._outcome(vcpu.vm, asked):
                return
            outcome = asked.outcome
            lib.kvmsr_give_answer(vcpu, question, outcome.verdict, outcome.value, outcome.name)

    def _outcome(self, vm: int, asked: Any) -> bool:
        """Find what shall happen, and put it into *asked*; False: the VMM is to be ended."""
        outcome = asked.outcome
        policy = self._by_serial.get(asked.serial)
        stops = outcome.verdict == native.lib.KVMSR_STOP
        if policy is None or asked.access.op > 1 or asked.access.reason > 2:
            outcome.verdict = native.lib.KVMSR_FAULT
            return True
        vm_side = policy.vm(vm)
        if not stops and not vm_side.asks_python(outcome.rule):
            outcome.verdict = native.lib.KVMSR_FAULT
            return True
        access = access_of(asked.access)
        found = vm_side.answer(access, outcome)
        if found.verdict is Verdict.STOP:
            self._end_at(access, found.rule)
            return False
        return True

    def _end_at(self, access: Access, rule: str) -> None:
        """End the VMM; the access gets no answer."""
        self._stop = self._stop or End(EndKind.STOP, FAILED, f"{rule} stops the run at a {access}")

    # Requests

    def _control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what ``kvmsr ctl`` asks."""
        with self._changing:
            match request:
                case {"do": "policy", "file": str(file)}:
                    return {"warnings": self._replace(load_policy(file))}
                case {"do": "save"}:
                    return {"state": self._now.state().as_json()}
                case {"do": "load", "state": str(text), "file": str(file)}:
                    self._now.restore(parse_state(text.encode(), file))
                    return {}
                case {"do": "reset"}:
                    self._now.reset()
                    return {}
                case {"do": "summary"}:
                    wall = time.monotonic() - self._begun
                    return self._result(End(EndKind.VMM, 0, "still running"), wall).as_dict()
        raise UsageError("this is a request that this version of kvmsr does not know")

    def _replace(self, policy: Policy) -> list[str]:
        """Let *policy* hold from now on; registers keep what they hold."""
        old = self._now
        new = InForce(policy, self._block, self._names, old.serial + 1, self._log)
        new.inherit(old)
        self._by_serial[new.serial] = new
        try:
            new.install()
            self._wait_for_filter()
        except BaseException:
            old.install()
            raise
        self._now = new
        if len(self._by_serial) > _KEPT:  # a question of theirs can hardly be waiting still
            self._over_with.append(self._by_serial.pop(min(self._by_serial)))
        return list(new.plan.warnings)

    def _wait_for_filter(self) -> None:
        """Wait until every VM has the policy's filter."""
        raw = self._block.raw
        failed, deadline = raw.failed, time.monotonic() + _GRACE
        raw.failed = 0
        while raw.n_vms and raw.installed != raw.generation and not self._over:
            if time.monotonic() > deadline:
                raise UsageError("the VMM did not take the policy: is its process stopped?")
            time.sleep(0.002)
        if raw.failed:
            why = os.strerror(raw.failed)
            raise UsageError(f"KVM did not take the policy for a VM: {why}; the one before holds")
        raw.failed = failed

    # The end

    def _end_now(self) -> End:
        return self._stop or _end_of(self._command[0], self._vmm.returncode)

    def _result(self, end: End, wall: float) -> RunResult:
        raw = self._block.raw
        policies = [*self._over_with, *self._by_serial.values()]
        notes = list(dict.fromkeys(note for policy in policies for note in policy.notes))
        if not raw.n_vms:
            notes.append("the VMM made no VM through KVM's ioctls, so no access could be seen")
        if raw.failed:
            notes.append(
                f"KVM did not take the policy for a VM: {os.strerror(raw.failed)}; that VM ran"
                " without"
            )
        if raw.lost_ranges:
            notes.append(
                f"{raw.lost_ranges} filter ranges of the policy found no room besides the VMM's"
                " own: MSRs in them were left to KVM"
            )
        if raw.n_vcpus > _MAX_VCPUS:
            notes.append(f"only the first {_MAX_VCPUS} vCPUs were under the policy")
        dropped = sum(vcpu.dropped for vcpu in self._block.vcpus())
        if dropped:
            notes.append(f"{dropped:,} accesses were not told: they came too fast")
        if raw.refused:
            notes.append(
                f"{raw.refused:,} writes to shadowed MSRs got #GP: {raw.n_shadows:,} MSRs are kept"
                " and no more"
            )
        policy = self._now.plan.policy
        return RunResult(
            "kvm",
            shlex.join(self._command),
            policy.source or policy.name,
            end,
            native_summary(self._block, self._names),
            wall,
            tuple(failure for one in policies for failure in one.failures),
            sum(one.failure_count for one in policies),
            tuple(notes),
        )


def _end_of(name: str, status: int) -> End:
    if status >= 0:
        return End(EndKind.VMM, status, f"{name} ended with status {status}")
    try:
        told = signal.Signals(-status).name
    except ValueError:
        told = f"signal {-status}"
    return End(EndKind.VMM, 128 - status, f"{name} was ended by {told}")
