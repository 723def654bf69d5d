# SPDX-License-Identifier: Apache-2.0
"""
Control of a run
----------------

``kvmsr ctl`` sends requests to a run over a socket in the abstract namespace: one line of JSON as
the request, one as the answer. A run answers only its own user and root. The name of its socket is
that of its process, and the kernel says which process listens, so another process cannot pose as
the run.
"""

import json
import os
import pwd
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from kvmsr.errors import HostError, KvmsrError, PolicyError, UsageError
from kvmsr.text import counted, nearest, shown

__all__ = ("ControlServer", "answers", "ask", "runs", "wait_for_end")

_MAX_MESSAGE: Final = 256 << 20
_PATIENCE: Final = 30.0
_LIST_PATIENCE: Final = 2.0
_LAST_ANSWERS: Final = 2.0
_CREDENTIALS: Final = struct.Struct("3i")
_SOCKETS: Final = Path("/proc/net/unix")
_MAX_ANCESTORS: Final = 64
_HIGHEST_PID: Final = 1 << 22
_ERRORS: Final = {error.exit_status: error for error in (UsageError, PolicyError, HostError)}

Handle = Callable[[dict[str, Any]], dict[str, Any]]


def _name(pid: int) -> str:
    return f"\0kvmsr-{pid}"


# The run's side


class ControlServer:
    """
    Listens for requests in its own threads, until it is closed.

    :param handle: handles a request and returns the answer. If it raises, the message is the
        answer.
    :ivar notes: why it cannot listen; empty if it can.
    """

    def __init__(self, handle: Handle) -> None:
        self.notes: list[str] = []
        self._handle = handle
        self._serving: list[threading.Thread] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(_name(os.getpid()))
        except OSError as error:  # anybody may have taken the name
            self.notes.append(f"kvmsr ctl could not reach this run: {error.strerror}")
            return
        self._socket.listen()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop listening. Requests that were already accepted get up to 2 seconds to finish."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        deadline = time.monotonic() + _LAST_ANSWERS
        for thread in list(self._serving):
            thread.join(max(deadline - time.monotonic(), 0))

    def _listen(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._serving = [other for other in self._serving if other.is_alive()]
            self._serving.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.settimeout(_PATIENCE)
            pid, user = _peer(peer)
            if user not in (0, os.geteuid()):
                answer = {"error": "only the user who started it, and root, may control it"}
            elif _descends_from_here(pid):  # a guest may have taken over its VMM
                answer = {"error": "what runs under it may not control it"}
            else:
                answer = self._answer(_read(peer))
            peer.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            request = json.loads(data)
            if isinstance(request, dict):
                return self._handle(request)
        except KvmsrError as error:
            return {"error": str(error), "status": error.exit_status}
        except Exception as error:  # a model's, for example: report it to the client
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": "this is not a request"}


# The client's side


def ask(target: str, request: dict[str, Any], needs: Collection[str] = ()) -> dict[str, Any]:
    """
    Send a request to a run, and return its answer.

    :param target: the run's name, or the process ID of kvmsr or of the VMM that it started.
    :param request: the request, as JSON types.
    :param needs: the keys that the answer must have.
    :raises UsageError: if there is no such run, it may not be controlled, or it refuses the
        request.
    :raises PolicyError: if the policy in the request has an error.
    :raises HostError: if the host lacks what the policy needs.
    """
    number = int(target) if _is_number(target) else _number_of(target)
    what = f"process {number}" if _is_number(target) else target
    with closing(_connect(number)) as peer:
        answer = _exchange(peer, request, _PATIENCE, what)
    if "error" in answer:
        kind = _ERRORS.get(answer.get("status", 0), UsageError)
        message = str(answer["error"])
        raise kind(message if kind is PolicyError else f"{what}: {message}")
    if not answer.keys() >= set(needs):
        raise UsageError(f"{what}: its answer is not one of this version of kvmsr")
    return answer


def answers(pid: int) -> bool:
    """Return whether there is a run to ask; *pid* is a process ID as :func:`ask` takes it."""
    try:
        _connect(pid).close()
    except UsageError:
        return False
    return True


def runs() -> Iterator[dict[str, Any]]:
    """Yield the status of each run that this user may control, by process ID."""
    numbers = {int(found) for found in re.findall(r"@kvmsr-([0-9]{1,7})$", _sockets(), re.M)}
    for number in sorted(numbers):
        peer = _opened(number)
        if peer is not None:
            with closing(peer), suppress(UsageError):
                if os.geteuid() in (0, _peer(peer)[1]):
                    answer = _exchange(peer, {"do": "status"}, _LIST_PATIENCE, "")
                    if isinstance(answer.get("pid"), int):
                        yield answer


def wait_for_end(pid: int) -> bool:
    """Wait until process *pid* has ended, for up to 30 seconds. Return whether it has."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(_PATIENCE * 1000))
    finally:
        os.close(fd)


def _is_number(target: str) -> bool:
    return target.isascii() and target.isdigit()


def _number_of(name: str) -> int:
    """Return the process ID of the run called *name*."""
    names: dict[str, list[int]] = {}
    for one in runs():
        names.setdefault(str(one.get("name", "")), []).append(one["pid"])
    found = names.get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(map(str, found))
        raise UsageError(f"{counted(len(found), 'run')} have the name {name}: use one of {pids}")
    known = sorted(one for one in names if one)
    hint = nearest(name, known) if known else "kvmsr ctl lists what runs"
    raise UsageError(f"no run of yours has the name {shown(name)}; {hint}")


def _connect(pid: int) -> socket.socket:
    if not 0 < pid <= _HIGHEST_PID or not Path(f"/proc/{pid}").exists():
        raise UsageError(f"there is no process {pid}; kvmsr ctl lists what runs")
    for number in (pid, *_children(pid), _controller_of(pid)):
        peer = _opened(number)
        if peer is not None:
            _refuse_other_user(peer, pid)
            return peer
    raise UsageError(
        f"process {pid} is neither a kvmsr run or exec nor a VMM that one has started; kvmsr ctl"
        " lists what runs"
    )


def _opened(number: int) -> socket.socket | None:
    """Return a connection to the run of process *number*, if that process listens."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.settimeout(_PATIENCE)
        peer.connect(_name(number))
        if _peer(peer)[0] == number:
            return peer
    except OSError:
        pass
    peer.close()
    return None


def _refuse_other_user(peer: socket.socket, pid: int) -> None:
    user = _peer(peer)[1]
    if os.geteuid() in (0, user):
        return
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = f"with ID {user}"
    peer.close()
    raise UsageError(
        f"process {pid} belongs to the user {name}: only that user, and root, may control it"
    )


def _exchange(
    peer: socket.socket, request: dict[str, Any], seconds: float, what: str
) -> dict[str, Any]:
    peer.settimeout(seconds)
    try:
        with suppress(BrokenPipeError):  # it has refused, and does not wait for the request
            peer.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(_read(peer))
    except TimeoutError:
        raise UsageError(
            f"{what}: no answer within {seconds:g} seconds; a handler may be holding Python's"
            " interpreter"
        ) from None
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}") from None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UsageError(f"{what}: it ended before it answered")
    return answer


def _peer(peer: socket.socket) -> tuple[int, int]:
    """Return the process ID and the user ID of the other end."""
    given = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(given)
    return pid, user


def _sockets() -> str:
    try:
        return _SOCKETS.read_text("utf-8", "replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    """Return the children of *pid*, which may be the supervisor of a run."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _controller_of(pid: int) -> int:
    """Return the controller that has started the VMM *pid*; 0 if none is found."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return 0
    for entry in environment:
        key, _, value = entry.partition(b"=")
        number = value.partition(b":")[0]
        if key == b"KVMSR_BLOCK" and number.isdigit():
            return int(number)
    return 0


def _descends_from_here(pid: int) -> bool:
    """Return whether this process has started process *pid*, or a process that did so."""
    for _ in range(_MAX_ANCESTORS):
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            return False
        if pid == os.getpid():
            return True
    return False


def _read(peer: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < _MAX_MESSAGE:
        part = peer.recv(1 << 16)
        if not part:
            break
        data += part
    return bytes(data)
