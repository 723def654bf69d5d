# SPDX-License-Identifier: Apache-2.0
"""
The controller
--------------

Start a VMM with the shim, answer what needs Python, and report what happened.

The VMM's process writes into the shared memory. It has the same rights as this process, but it
hosts an adversary: anything read from that memory may be nonsense, and must do no harm here.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from kvmsr import native
from kvmsr.attach.elf import find_vmm
from kvmsr.attach.processes import BLOCK, Processes
from kvmsr.attach.questions import Questions
from kvmsr.attach.soft import SoftKvm
from kvmsr.attach.vms import Vms, error_name
from kvmsr.backend import Backend
from kvmsr.dispatch import Sink
from kvmsr.errors import BackendError, HostError, KvmsrError, UsageError
from kvmsr.kvm import Kvm
from kvmsr.native import lib
from kvmsr.policy import Access, Policy
from kvmsr.policy.enumeration import unseen_line
from kvmsr.policy.selector import Ranges
from kvmsr.session import End, EndKind, RunResult, Session, kept_state, save_state
from kvmsr.session.control import ControlServer
from kvmsr.session.requests import About, Requests
from kvmsr.session.result import FAILED, INTERRUPTED
from kvmsr.session.supervisor import Witness
from kvmsr.text import counted
from kvmsr.trace import TraceOptions

__all__ = ("Controller",)

_MAX_VCPUS: Final = 1024
_PAUSE: Final = 0.05
_GRACE: Final = 5.0
_PATIENCE: Final = 1.0
_REQUIRE: Final = "KVMSR_REQUIRE"
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)


class Controller:
    """
    Runs a VMM, once, with its guests under a policy.

    :param command: the VMM and its arguments.
    :param policy: the policy.
    :param backend: the VMM's KVM.
    :param soft: if that is the soft backend: what it takes to have it in the VMM's process. It is
        closed with the controller.
    :param log: receives the accesses that the policy logs.
    :param state: the file that keeps the registers from one run to the next.
    :param require: do not let a VM run that would not be under the whole policy.
    :param observe: the MSRs that are observed whatever the policy in force says.
    :param name: what ``kvmsr ctl`` calls the run, or "".
    :param trace: how to record the run in a trace file; by default it is not recorded.
    :param timed: whether to count latencies.
    :param output_to_stderr: send the VMM's standard output to standard error.
    :param witness: the connection to the supervisor.
    :ivar supported: the CPUID that this KVM has for guests. What the VMM shows is not seen.
    :ivar requests: what ``kvmsr ctl`` can do.
    :ivar on_hangup: called at SIGHUP, if it is not to be passed on.
    :ivar unsaved: why the state could not be saved; None if it was.
    :raises UsageError: if there is no such VMM, or no library can be preloaded into it.
    :raises HostError: if the host lacks what the policy needs.
    :raises PolicyError: if the policy does not fit this KVM.
    """

    def __init__(
        self,
        command: Sequence[str],
        policy: Policy,
        backend: Backend,
        *,
        soft: SoftKvm | None = None,
        log: Sink | None = None,
        state: Path | None = None,
        require: bool = False,
        observe: Ranges = (),
        name: str = "",
        trace: TraceOptions | None = None,
        timed: bool = False,
        output_to_stderr: bool = False,
        witness: Witness | None = None,
    ) -> None:
        _require_shim()
        self._command = list(command)
        self._program = find_vmm(command[0]).absolute()
        self._to_stderr = output_to_stderr
        self._witness = witness or Witness()
        self._state = state
        self._require = require
        self._about = About("exec", shlex.join(command), name)
        self._end: End | None = None
        self._processes: Processes | None = None
        self._over = False
        self._begun = time.monotonic()
        self.unsaved: KvmsrError | None = None
        self.on_hangup: Callable[[], None] | None = None
        kept = None if state is None else kept_state(state)
        self._soft = soft
        self._kvm = Kvm(backend)
        try:
            self.supported = self._kvm.get_supported_cpuid()
            self.session = Session(
                policy.observing(observe), self._kvm, log=log, vcpus=_MAX_VCPUS, trace=trace,
                timed=timed, attached=True,
            )  # fmt: skip
            assert self.session.shared is not None
            self._block = self.session.shared.block
            try:
                self.session.check()
                if kept is not None:
                    self.session.restore(kept, f"--state {state}")
            except BaseException:
                self.session.close()
                raise
        except BaseException:
            self._kvm.close()
            raise
        self._questions = Questions(self.session, self._block, self._stop_at, self._interrupt)
        self._vms = Vms(self._block)
        self.requests = Requests(self, self._about, self._witness, observe)

    def run(self) -> RunResult:
        """Run the VMM until it ends, and return the result."""
        self._begun = time.monotonic()
        with self._passing_signals_on():
            if not lib.kvmsr_live(self._block.tables):
                raise HostError("this host's C library has no robust mutexes")
            server = self._server = ControlServer(self.requests.handle)
            try:
                self._questions.recorded = self.session.begin_recording(
                    "exec", self._about.command, log=self._questions.log_event
                )
                self._witness.begin(self.session, self._about.command, state=self._state)
                self._processes = self._start()
                self._witness.vmm(self._processes.child.pid)
                self._serve()
                self._save()
            finally:
                self._over = True
                lib.kvmsr_end(self._block.tables)
                self._witness.end()
                self._questions.close()
                self.session.end_recording()
                server.close()
        assert self._processes is not None
        self._processes.close()
        end = self._end or _end_of(self._command[0], self._processes.child.returncode)
        return self._result(end)

    def _save(self) -> None:
        """Save the registers, while the supervisor still watches over models."""
        if self._state is not None:
            try:
                save_state(self._state, self.session.state())
            except KvmsrError as error:
                self.unsaved = error

    def close(self) -> None:
        """Close the session and KVM."""
        self.session.close()
        self._kvm.close()
        if self._soft is not None:
            self._soft.close()

    # The VMM

    def _start(self) -> Processes:
        preload = [str(native.SHIM), os.environ.get("LD_PRELOAD")]
        if self._soft is not None:
            preload[1:1] = [str(native.SOFT)]
        inherited = [self._block.fd, self._block.tables_fd]
        environment = os.environ | {
            "LD_PRELOAD": ":".join(filter(None, preload)),
            BLOCK: ":".join(map(str, [os.getpid(), *inherited])),
        }
        if self._require:
            environment[_REQUIRE] = "1"
        if self._soft is not None:
            environment |= self._soft.environment()
        sys.stdout.flush()
        stdout = sys.stderr.fileno() if self._to_stderr else None
        return Processes(self._command, self._program, environment, inherited, stdout)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """Pass signals on to the VMM, except Ctrl-C, which the terminal sends to the VMM itself."""
        before = {number: signal.signal(number, self._pass_on) for number in _PASSED_ON}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        if number == signal.SIGHUP and self.on_hangup is not None:
            self.on_hangup()
        elif self._processes is not None:
            self._processes.send(signal.Signals(number), self._runners())

    def _runners(self) -> set[int]:
        """Return the processes that run vCPUs, according to the VMM."""
        return {vcpu.pid for vcpu in self._block.vcpus()}

    def _serve(self) -> None:
        """Serve vCPUs until the run's processes have ended."""
        assert self._processes is not None
        stopping, told = 0.0, False
        while not self._processes.over():
            if self._processes.child.returncode is not None and not told:
                told = True
                self._witness.background()
            self._processes.wait(_PAUSE)
            self._questions.serve()
            self._vms.look()
            if self._end is not None and not stopping:
                self._processes.send(signal.SIGTERM, self._runners())
                stopping = time.monotonic()
            elif stopping and time.monotonic() - stopping > _GRACE:
                self._processes.send(signal.SIGKILL, self._runners())

    def _stop_at(self, access: Access, rule: str) -> None:
        """End the VMM because of *rule*. The access gets no answer."""
        self._end = self._end or End(EndKind.STOP, FAILED, f"{rule} stops the run at a {access}")

    def _interrupt(self) -> None:
        """End the VMM because a handler raised KeyboardInterrupt."""
        self._end = self._end or End(EndKind.STOP, INTERRUPTED, "interrupted by a handler")

    # Requests of kvmsr ctl

    def stop(self, why: str) -> None:
        """End the VMM, as the action ``stop`` does."""
        self._end = self._end or End(EndKind.STOP, FAILED, why)

    def held(self) -> AbstractContextManager[None]:
        """Do nothing: only the VMM can hold its vCPUs."""
        return nullcontext()

    def so_far(self) -> RunResult:
        """Return the result of the run so far."""
        return self._result(End(EndKind.RUNNING, 0, "still running"))

    def installed(self) -> None:
        """
        Wait until all VMs have the policy's filter, for a second at most.

        A VM whose guest is stopped gets the filter before it runs again.
        """
        tables, deadline = self._block.tables, time.monotonic() + _PATIENCE
        while not self._over:
            vms = [vm for _, vm in self._block.vms() if vm.taken == lib.KVMSR_TAKEN]
            waiting = [vm for vm in vms if vm.generation != tables.generation]
            for vm in vms:
                if vm not in waiting and vm.failed:
                    why = error_name(vm.failed)
                elif vm not in waiting and vm.lost_ranges and self._require:
                    why = "its filter has no room beside the VMM's own"
                else:
                    continue
                raise UsageError(
                    f"KVM refused the policy for a VM: {why}; the policy before it stays in force"
                )
            if not waiting or time.monotonic() > deadline:
                return
            time.sleep(0.002)

    # The end

    def _result(self, end: End) -> RunResult:
        self._vms.look()
        return self.session.result(
            self._about.command,
            end,
            time.monotonic() - self._begun,
            notes=[*self._questions.notes, *self._notes(), *self._server.notes],
            losses=list(self._losses()),
            vms=self._vms.reports(),
        )

    def _losses(self) -> Iterator[str]:
        """Yield a line for everything that was not under the policy."""
        yield from self._vms.losses()
        missed = self._block.raw.missed
        if missed:
            yield (
                f"{counted(missed, 'VM')} not under the policy: no more than"
                f" {lib.KVMSR_MAX_VMS} at a time can be"
            )

    def _notes(self) -> Iterator[str]:
        if self._soft is not None:
            yield from self._soft.notes()
        raw = self._block.raw
        if not raw.n_vms and not raw.missed:
            yield "the VMM created no VM through KVM's ioctls, so no access could be seen"
        accessed = {row.index for row in self.session.summary()}
        if accessed:
            yield from unseen_line(self.session.plan.policy, self.supported.vendor, accessed)
        if any(vm.loads for _, vm in self._block.vms()) and not self.session.restored:
            yield from self._load_note()
        dropped = sum(vcpu.dropped for vcpu in self._block.vcpus())
        if dropped and not self._questions.recorded:
            accesses = counted(dropped, "access", "accesses")
            yield f"not logged because they came too fast: {accesses}"

    def _load_note(self) -> Iterator[str]:
        if self.session.plan.policy.has_registers:
            yield (
                "the VMM loaded a saved state into a VM: the policy's own registers were not in it,"
                " and began at their reset values; kvmsr ctl save and load keep them"
            )


def _require_shim() -> None:
    """
    Raise unless the shim can be preloaded into VMMs.

    :raises BackendError: if the shim was not built.
    :raises UsageError: if the dynamic loader cannot be given its path.
    """
    if not native.available() or not native.SHIM.exists():
        raise BackendError(native.why_not() or f"{native.SHIM} is missing: reinstall kvmsr")
    if set(" :") & set(str(native.SHIM)):
        raise UsageError(
            f"{native.SHIM} cannot be preloaded, because its path contains a space or colon:"
            " install kvmsr elsewhere"
        )


def _end_of(name: str, status: int) -> End:
    if status >= 0:
        return End(EndKind.VMM, status, f"{name} ended with status {status}")
    try:
        number = signal.Signals(-status).name
    except ValueError:
        number = f"signal {-status}"
    return End(EndKind.VMM, 128 - status, f"{name} was ended by {number}")
