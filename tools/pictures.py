# SPDX-License-Identifier: Apache-2.0
"""
Makes the pictures of terminals in docs/, of real runs:

    python tools/pictures.py live docs/pictures/live          # live-dark.svg and live-light.svg
    python tools/pictures.py run vmlinuz docs/pictures/run.svg
    python tools/pictures.py summary boot.arrows vmlinuz docs/pictures/trace-summary.svg

The guest of the first is a power meter, under preset:power-meter, on the soft backend.
"""

import asyncio
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from io import StringIO
from pathlib import Path

SIZE = (100, 30)
WATCHED_S = 64  # a little more than the minute that the view shows
WIDTH = 196  # of the table of a summary, in characters
RUN_WIDTH = 132  # of the table of a run

KVMSR = [sys.executable, "-m", "kvmsr"]
TEMPERATURE, BIAS = 0x19C, 0x1B0


# A guest in real mode that reads what a power meter reads, some of it more often than the rest


def read(index):
    return b"\x66\xb9" + struct.pack("<I", index) + b"\x0f\x32"  # mov ecx, index; rdmsr


def sleep(count):
    return b"\x66\xb9" + struct.pack("<I", count) + b"\x67\xe2\xfd"  # mov ecx, count; loop


def sometimes(mask, code):
    """Run code in those rounds whose number, in BP, has a bit of *mask*."""
    return b"\xf7\xc5" + struct.pack("<H", mask) + b"\x0f\x84" + struct.pack("<H", len(code)) + code


def meter():
    begin = bytes.fromhex(
        "31c0 8ed8 8ed0 bc0070"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7000
        "c7063400 0000 c70636000000"  # the vector of #GP, whose address comes below
        "31ed"  # xor bp, bp
    )
    set_bias = bytes.fromhex(
        "66b9b0010000 660fb7c5 66c1e808 6683e00f 6631d2 0f30"  # write bits 11:8 of BP to 0x1b0
    )
    round_ = b"".join(
        [
            b"\x45",  # inc bp
            read(0x611) * 6,
            read(0x619) * 2,
            read(0xE7),
            read(0xE8),
            read(TEMPERATURE) * 2,
            read(0x1B1),
            read(0x198),
            sometimes(0x0400, read(0x611) * 12 + read(0xE8) * 4 + read(0xE7) * 4),
            sometimes(0x0080, read(0x606) + read(0x1A2) + read(0xCE)),
            sometimes(0x0800, read(0x639) * 3 + read(0x641) * 2),
            sometimes(0x0040, set_bias + read(BIAS)),
            sometimes(0x1000, read(0x64D)),  # #GP
            sleep(0x6000),
        ]
    )
    round_ += b"\xe9" + struct.pack("<h", -len(round_) - 3)
    handler = bytes.fromhex("5589e5 834602 02 5d cf")  # step over the instruction, 2 bytes
    address = 0x7C00 + len(begin) + len(round_)
    image = bytearray(begin + round_ + handler)
    at = begin.index(bytes.fromhex("c7063400")) + 4
    image[at : at + 2] = struct.pack("<H", address)
    return bytes(image)


def picture_live(output):
    from kvmsr.session.control import runs

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "meter.bin").write_bytes(meter())
        words = [*KVMSR, "run", "meter.bin", "--mode", "16", "--memory", "2M", "--backend", "soft"]
        words += ["--policy", "preset:power-meter", "--name", "meter", "--log", "log"]
        run = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            while not any(one["name"] == "meter" for one in runs()):
                time.sleep(0.1)
            asyncio.run(watch(output))
        finally:
            run.terminate()
            run.wait()


async def watch(output):
    from kvmsr.live.app import LiveApp

    app = LiveApp("meter")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(WATCHED_S - 4)
        app._change(BIAS, "IA32_ENERGY_PERF_BIAS", {"read": 7, "write": "ignore"})
        await pilot.pause(1)
        while app.selected.index != TEMPERATURE:
            await pilot.press("down")
        await pilot.pause(3)
        for theme in ("dark", "light"):
            app.theme = f"textual-{theme}"
            await pilot.pause(1)
            svg = app.export_screenshot(title="kvmsr top meter")
            Path(f"{output}-{theme}.svg").write_text(plain(svg))


def picture_run(kernel, output):
    """Boot a kernel under examples/linux.toml; the picture is of the end, without the guest's."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(kernel, Path(folder) / "vmlinuz")
        shutil.copy(Path(__file__).parent.parent / "examples/linux.toml", folder)
        words = [*KVMSR, "run", "vmlinuz", "--backend", "soft", "--memory", "512M"]
        words += ["--append", "console=ttyS0 panic=-1", "--policy", "linux.toml"]
        shown = "$ kvmsr run vmlinuz --append 'console=ttyS0 panic=-1' --policy linux.toml"
        hidden = ["--serial", "serial", "--log", "log"]
        printed = on_terminal([*words, *hidden], folder, RUN_WIDTH)
    picture(shown, printed[printed.index("MSR accesses") :], RUN_WIDTH, "kvmsr run", output)


def picture_summary(trace, symbols, output):
    # The names, of files in one folder, are what the user would write.
    words = [*KVMSR, "trace", "summary", Path(trace).name, "--symbols", Path(symbols).name]
    printed = on_terminal(words, Path(trace).parent, WIDTH)
    picture(f"$ kvmsr {' '.join(words[3:])}", printed, WIDTH, "kvmsr trace summary", output)


def picture(command, printed, width, title, output):
    """Write a picture of a terminal with a command, and what it printed."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=width, file=StringIO())
    console.print(Text(command, "bold"))
    console.print(Text.from_ansi(printed))
    Path(output).write_text(plain(console.export_svg(title=title)))


def on_terminal(words, folder, width):
    """Return what a command prints on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 100, width, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    run = subprocess.Popen(words, cwd=folder, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 1 << 16):
            found += part
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    run.wait()
    return found.decode().replace("\r\n", "\n")


def plain(svg):
    """Return a picture that asks no network for a font."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()).strip() + "\n"


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    {"live": picture_live, "run": picture_run, "summary": picture_summary}[what](*words)
