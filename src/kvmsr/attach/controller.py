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
from collections.abc import Callable, Sequence
from typing import Any, Final

from kvmsr import _native
from kvmsr._native.block import Block
from kvmsr.abi import Cap
from kvmsr.backend import HostBackend
from kvmsr.dispatch import Dispatcher, Sink, Verdict
from kvmsr.dispatch.native import NativeDispatcher, access_of, outcome_of
from kvmsr.dispatch.table import Names, compile_table, table_rules
from kvmsr.errors import BackendError, UsageError
from kvmsr.kvm import Kvm
from kvmsr.machine.fitting import fitting_plan
from kvmsr.machine.hostmsr import host_msrs
from kvmsr.machine.result import FAILED, End, EndKind, RunResult
from kvmsr.policy import Access, Plan, Policy
from kvmsr.trace.native import native_summary

__all__ = ("Controller",)

_MAX_VCPUS: Final = 1024
_PAUSE: Final = 0.05
_WAIT_MS: Final = 100
_GRACE: Final = 5.0
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)


class Controller:
    """
    Runs a VMM whose guests are under a policy; once.

    :param command: the VMM and its arguments.
    :param log: takes the accesses that the policy wants told.
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
        output_to_stderr: bool = False,
    ) -> None:
        if not _native.available() or not _native.SHIM.exists():
            raise BackendError(
                _native.why_not() or f"{_native.SHIM} is missing: install kvmsr anew"
            )
        if set(" :") & set(str(_native.SHIM)):
            raise UsageError(
                f"{_native.SHIM} cannot be preloaded: its path has a space or colon in it; install"
                " kvmsr elsewhere"
            )
        self._command = list(command)
        self._log = log
        self._to_stderr = output_to_stderr
        self._plan = _plan_here(policy)
        self._host = host_msrs(policy)
        self._names = Names()
        self._rules = table_rules(self._plan)
        self._block = Block(_MAX_VCPUS)
        self._block.install(compile_table(self._plan, self._names, tells=log is not None))
        self._dispatchers: dict[int, Dispatcher] = {}
        self._acts: dict[int, list[Callable[[Access], Any] | None]] = {}
        self._making = threading.Lock()
        self._telling: Dispatcher = self._dispatcher(0)
        self._stop: End | None = None
        self._over = False

    def run(self) -> RunResult:
        """Run the VMM to its end."""
        begun = time.monotonic()
        ours, theirs = socket.socketpair()
        with ours:
            before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
            # A Ctrl-C goes to all processes of the terminal: what it means is the VMM's to say.
            before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
            try:
                with theirs:
                    self._vmm = self._start(theirs.fileno())
                self._serve()
            finally:
                self._over = True
                for number, handler in before.items():
                    signal.signal(number, handler)
        return self._result(self._vmm.returncode, time.monotonic() - begun)

    def close(self) -> None:
        """Give everything back."""
        self._block.close()
        if self._host is not None:
            self._host.close()

    # The VMM

    def _start(self, life: int) -> subprocess.Popen[bytes]:
        preload = ":".join(filter(None, (str(_native.SHIM), os.environ.get("LD_PRELOAD"))))
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
                pass_fds=(life,),
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
            if self._vmm.returncode is not None:
                return
            if self._stop is not None and not stopping:
                self._vmm.terminate()
                stopping = time.monotonic()
            elif stopping and time.monotonic() - stopping > _GRACE:
                self._vmm.kill()

    def _tell(self, vcpus: list[Any]) -> None:
        event = _native.ffi.new("struct kvmsr_event *")
        for vcpu in vcpus:
            while _native.lib.kvmsr_next_event(vcpu, event):
                if event.op > 1 or event.reason > 2 or event.verdict > 3:
                    continue
                rule = self._rules[event.rule][0] if event.rule < len(self._rules) else None
                raw = _native.ffi.new(
                    "struct kvmsr_access *",
                    (event.value, vcpu.id, event.index, event.op, event.reason),
                )
                self._telling.tell(rule, access_of(raw), outcome_of(event, self._names))

    # Questions

    def _dispatcher(self, vm: int) -> Dispatcher:
        """Return what knows the Python side of the plan, for one VM."""
        with self._making:
            found = self._dispatchers.get(vm)
            if found is None:
                vcpus = sum(vcpu.vm == vm for vcpu in self._block.vcpus())
                found = Dispatcher(
                    self._plan,
                    vcpus=max(vcpus, 1),
                    rip=lambda vcpu: 0,  # such rules are C's to choose
                    host=self._host,
                    log=self._log,
                )
                self._dispatchers[vm] = found
                self._acts[vm] = [
                    None if rule is None else found.act(rule, op) for rule, op, _ in self._rules
                ]
            return found

    def _answer(self, vcpu: Any) -> None:
        """Answer the questions of one vCPU; a thread of its own does."""
        upcall = vcpu.upcall
        while not self._over:
            if _native.lib.kvmsr_await_question(vcpu, _WAIT_MS):
                continue
            verdict, value, name = _native.lib.KVMSR_FAULT, 0, upcall.outcome.name
            if upcall.access.op > 1 or upcall.access.reason > 2:
                _native.lib.kvmsr_give_answer(vcpu, verdict, value, name)
                continue
            access = access_of(upcall.access)
            if upcall.outcome.verdict == _native.lib.KVMSR_STOP:
                self._end_at(access, self._names.name(name))
                return
            self._dispatcher(vcpu.vm)
            number = upcall.outcome.rule
            act = self._acts[vcpu.vm][number] if number < len(self._rules) else None
            if act is not None:
                outcome = act(access)
                if outcome.verdict is Verdict.STOP:
                    self._end_at(access, outcome.rule)
                    return
                verdict = NativeDispatcher.number_of(outcome.verdict)
                value, name = outcome.value, self._names.number(outcome.rule)
            _native.lib.kvmsr_give_answer(vcpu, verdict, value, name)

    def _end_at(self, access: Access, rule: str) -> None:
        """End the VMM; the access gets no answer."""
        self._stop = self._stop or End(EndKind.STOP, FAILED, f"{rule} stops the run at a {access}")

    # The end

    def _result(self, status: int, wall: float) -> RunResult:
        raw = self._block.raw
        notes = list(self._plan.warnings)
        for dispatcher in self._dispatchers.values():
            notes += dispatcher.models.notes
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
        failures = [f for d in self._dispatchers.values() for f in d.failures]
        return RunResult(
            "kvm",
            shlex.join(self._command),
            self._plan.policy.source or self._plan.policy.name,
            self._stop or _end_of(self._command[0], status),
            native_summary(self._block, self._names),
            wall,
            tuple(failures),
            sum(d.failure_count for d in self._dispatchers.values()),
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


def _plan_here(policy: Policy) -> Plan:
    """Return the plan for the host's KVM, which is asked by way of a VM that runs nothing."""
    with Kvm(HostBackend()) as kvm:
        kvm.require(Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)
        vm = kvm.create_vm()
        try:
            vcpu = vm.create_vcpu(0)
            try:
                return fitting_plan(policy, kvm, vcpu)
            finally:
                vcpu.close()
        finally:
            vm.close()
