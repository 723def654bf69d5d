# SPDX-License-Identifier: Apache-2.0
"""
The first process of the nested machine
---------------------------------------

Mounts what Python and KVM need, loads KVM, runs Python with the arguments that were packed, and
switches the machine off. The output goes to the second serial line, all else to the first, which
is the console. What the second line says is the input. The last line of the output is the exit
status.
"""

import ctypes
import json
import os
import subprocess
import sys
import traceback
import tty
from pathlib import Path

FINIT_MODULE = 313  # x86-64's number; the C library has no function for it
POWER_OFF = 0x4321FEDC  # linux/reboot.h
OUTPUT = "/dev/ttyS1"
JOB = Path("/job.json")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def mount(kind: str, where: str) -> None:
    Path(where).mkdir(exist_ok=True)
    check(libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None), f"mount {where}")


def load_module(path: str, parameters: str) -> None:
    with Path(path).open("rb") as module:
        check(libc.syscall(FINIT_MODULE, module.fileno(), parameters.encode(), 0), f"load {path}")


def run(job: dict) -> None:
    for kind, where in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, where)
    for path, parameters in job["modules"]:
        load_module(path, parameters)
    with Path(OUTPUT).open("r+b", buffering=0) as output:
        tty.setraw(output)
        command = [sys.executable, *job["arguments"]]
        done = subprocess.run(
            command, check=False, cwd=job["folder"], env=job["environment"], stdin=output,
            stdout=output,
        )  # fmt: skip
        output.write(f"\n{done.returncode}".encode())


if __name__ == "__main__":
    try:
        run(json.loads(JOB.read_text("utf-8")))
    except Exception:
        traceback.print_exc()
    os.sync()
    libc.reboot(POWER_OFF)
