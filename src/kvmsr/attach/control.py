# SPDX-License-Identifier: Apache-2.0
"""
Talking to a controller
-----------------------

``kvmsr ctl`` and its like ask a running controller over a socket that has a name and no file: one
line of JSON there, one back. Only the controller's own user is listened to, and root.
"""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kvmsr.errors import KvmsrError, UsageError

__all__ = ("ControlServer", "ask")

_MAX_REQUEST: Final = 64 << 20
_PATIENCE: Final = 30.0
_LAST_ANSWERS: Final = 2.0
_CREDENTIALS: Final = struct.Struct("3i")

Handle = Callable[[dict[str, Any]], dict[str, Any]]


def _name(pid: int) -> str:
    return f"\0kvmsr-{pid}"


class ControlServer:
    """
    Listens for requests, in threads of its own, until it is closed.

    :param handle: does what a request asks and returns the answer; KvmsrError is told.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._serving: list[threading.Thread] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(_name(os.getpid()))
        self._socket.listen()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Listen no more. Whoever has asked already is answered first, if that is quick."""
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
            given = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, user, _ = _CREDENTIALS.unpack(given)
            if user in (0, os.geteuid()):
                answer = self._answer(_read(peer))
            else:
                answer = {"error": "only the user who started this may change it"}
            peer.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            request = json.loads(data)
            if isinstance(request, dict):
                return self._handle(request)
        except KvmsrError as error:
            return {"error": str(error)}
        except Exception as error:  # a model's, say: whoever asks shall know
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": "this is no request"}


def ask(pid: int, request: dict[str, Any]) -> dict[str, Any]:
    """
    Ask a controller, and return its answer.

    :param pid: the controller's process, or the VMM's.
    :raises UsageError: if there is none, or it refuses; says why.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(_PATIENCE)
        try:
            _connect(peer, pid)
            peer.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(_read(peer))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it did not answer"
            raise UsageError(f"process {pid}: {reason}") from None
    if "error" in answer:
        raise UsageError(f"process {pid}: {answer['error']}")
    return answer


def _connect(peer: socket.socket, pid: int) -> None:
    for number in (pid, *_children(pid), _controller_of(pid)):
        try:
            peer.connect(_name(number))
        except ConnectionRefusedError:
            continue
        return
    raise UsageError(
        f"process {pid} is no kvmsr exec, and no VMM that one has started; kvmsr exec tells its"
        " process, and so does: pgrep -af 'kvmsr exec'"
    )


def _children(pid: int) -> list[int]:
    """Return the children of *pid*: it may be the supervisor of a controller."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _controller_of(pid: int) -> int:
    """Return the controller that has started the VMM *pid*; 0 if there is none to be seen."""
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


def _read(peer: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < _MAX_REQUEST:
        part = peer.recv(1 << 16)
        if not part:
            break
        data += part
    return bytes(data)
