# SPDX-License-Identifier: Apache-2.0
"""
The suite as a command
----------------------

Runs items on kernels and prints a table of what came of them.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from kvmsr.errors import KvmsrError, UsageError
from tests.conformance import registry, targets
from tests.conformance.registry import Item, Result
from tests.conformance.targets import Target
from tests.nested.machine import NestedError
from tests.nested.machine import run as run_nested
from tests.nested.parts import MissingError

_INDENT = {"initial_indent": "    ", "subsequent_indent": "      "}
SIGNS = {"pass": "ok", "fail": "FAIL", "n/a": "n/a"}


def main() -> int:
    """Run, print, and return the exit status: 1 if an item failed, 2 if it could not be tried."""
    arguments = _arguments()
    items = [item for item in registry.load().values() if item.number.startswith(arguments.items)]
    if not items:
        return _say(f"no item's number begins with {arguments.items}")
    found: dict[str, list[Result]] = {}
    for name in arguments.on or ("kvm", "soft", "nested"):
        try:
            found.update(_run(name, items, arguments.items))
        except NestedError as error:
            return _say(f"{name}: {error}")
        except (KvmsrError, MissingError) as error:
            why = f"needs {error}" if isinstance(error, MissingError) else error
            if arguments.on:
                return _say(f"{name}: {why}")
            _say(f"{name}: left out: {why}")
    for path in arguments.read:
        found.update(_parsed(path.read_text("utf-8"), items))
    if arguments.json:
        _write(arguments.json, found)
    else:
        _print(items, found)
    return int(any(result.outcome == "fail" for results in found.values() for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run the conformance items on kernels and compare.",
        epilog="example: python -m tests.conformance --on kvm --on soft:pvm --items C-02",
    )
    parser.add_argument(
        "--on", action="append", metavar="KERNEL",
        help="kvm; own (this machine's KVM, whose module parameters may be changed);"
        " soft:PROFILE[,force_emulation_prefix]; soft for all profiles; nested; by default kvm,"
        " soft and nested as far as they are here",
    )  # fmt: skip
    parser.add_argument("--items", default="", metavar="C-…", help="only numbers that begin so")
    parser.add_argument("--json", metavar="FILE", help="write the results there; - for the output")
    parser.add_argument(
        "--read", action="append", default=[], type=Path, metavar="FILE",
        help="show what --json wrote elsewhere, too",
    )  # fmt: skip
    return parser.parse_args()


def _run(name: str, items: list[Item], numbers: str) -> dict[str, list[Result]]:
    if name == "nested":
        _say(f"{name}: {len(items)} items …")
        return nested(items, numbers)
    found = {}
    for target in _targets(name):
        _say(f"{target.name}: {len(items)} items …")
        found[target.name] = targets.run_items(target, items)
    return found


def _targets(name: str) -> Iterator[Target]:
    if name == "kvm":
        yield targets.host()
    elif name == "own":
        yield targets.host(own=True)
        yield targets.host(own=True, emulating=True)
    elif name == "soft":
        yield from map(targets.soft, targets.profiles())
    elif name.startswith("soft:"):
        yield targets.soft(name.removeprefix("soft:"))
    else:
        raise UsageError("no such kernel; there are kvm, own, soft, soft:PROFILE and nested")


def nested(items: list[Item], numbers: str = "") -> dict[str, list[Result]]:
    """
    Run items on upstream's KVM in the nested machine.

    :raises MissingError: if a part of that machine is not here.
    :raises NestedError: if it does not come to its end.
    """
    options = ["--on", "own", "--json", "-", "--items", numbers]
    done = run_nested(["-m", "tests.conformance", *options])
    if done.status not in (0, 1):
        raise NestedError(f"exit status {done.status}\n{done.console_end}")
    told = _parsed(done.output, items)
    return {name.replace("own:", "nested:", 1): results for name, results in told.items()}


def _write(path: str, found: dict[str, list[Result]]) -> None:
    told = {
        name: [[r.number, r.outcome, r.detail, round(r.seconds, 4)] for r in results]
        for name, results in found.items()
    }
    text = json.dumps(told, indent=1)
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text, "utf-8")


def _parsed(text: str, items: list[Item]) -> dict[str, list[Result]]:
    numbers = {item.number for item in items}
    return {
        name: [Result(*result) for result in results if result[0] in numbers]
        for name, results in json.loads(text).items()
    }


def _print(items: list[Item], found: dict[str, list[Result]]) -> None:
    """Print a column for each kernel, headed by a number, and what the numbers stand for."""
    by_number = {name: {r.number: r for r in results} for name, results in found.items()}
    print("item ", *(f"{column:<4}" for column, _ in enumerate(found, 1)))
    for item in items:
        results = (results.get(item.number) for results in by_number.values())
        cells = (f"{SIGNS[result.outcome] if result else '-':<4}" for result in results)
        print(item.number, *cells, item.statement.splitlines()[0])
    print()
    for column, (name, results) in enumerate(found.items(), 1):
        outcomes = [result.outcome for result in results]
        counts = (f"{outcomes.count(outcome):4} {outcome}" for outcome in SIGNS)
        print(f"{column:>2}  {name:<30}", *counts)
    _print_details(found)


def _print_details(found: dict[str, list[Result]]) -> None:
    for outcome, title in (("fail", "Failures"), ("n/a", "Not applicable")):
        details: dict[str, dict[str, list[str]]] = {}
        for name, results in found.items():
            for result in results:
                if result.outcome == outcome:
                    places = details.setdefault(result.detail, {})
                    places.setdefault(name, []).append(result.number)
        if details:
            print(f"\n{title}")
        for text, places in details.items():
            print(f"  {text}")
            for name, numbers in places.items():
                print(textwrap.fill(f"{name}: {' '.join(numbers)}", 100, **_INDENT))


def _say(text: str) -> int:
    """Tell the user, beside the results, and return the exit status for "could not"."""
    print(text, file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
