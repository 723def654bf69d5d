# SPDX-License-Identifier: Apache-2.0
"""
Requests to a controller
------------------------

``kvmsr ctl`` sends requests to a running controller over a socket in the abstract namespace: one
line of JSON as the request, one as the answer. The controller answers only its own user and root.
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
    Listens for requests in its own threads, until it is closed.

    :param handle: handles a request and returns the answer. If it raises, the message is the
        answer.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._serving: list[threading.Thread] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(_name(os.getpid()))
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
            given = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, user, _ = _CREDENTIALS.unpack(given)
            if user in (0, os.geteuid()):
                answer = self._answer(_read(peer))
            else:
                answer = {"error": "only the user who started it, and root, may change it"}
            peer.sendall(json.dumps(answer).encode() + b"\n")

    def _answer(self, data: bytes) -> dict[str, Any]:
        try:
            request = json.loads(data)
            if isinstance(request, dict):
                return self._handle(request)
        except KvmsrError as error:
            return {"error": str(error)}
        except Exception as error:  # a model's, for example: report it to the client
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": "this is not a request"}


def ask(pid: int, request: dict[str, Any]) -> dict[str, Any]:
    """
    Send a request to a controller, and return its answer.

    :param pid: process ID of ``kvmsr exec`` or of its VMM.
    :param request: the request, as JSON types.
    :raises UsageError: if there is no controller, or it refuses the request.
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
        f"process {pid} is neither a kvmsr exec nor a VMM that one has started; to find them:"
        " pgrep -af 'kvmsr exec'"
    )


def _children(pid: int) -> list[int]:
    """Return the children of *pid*, which may be the supervisor of a controller."""
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


def _read(peer: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < _MAX_REQUEST:
        part = peer.recv(1 << 16)
        if not part:
            break
        data += part
    return bytes(data)
