# SPDX-License-Identifier: Apache-2.0
"""
Differential runs
-----------------

Plays generated scenarios on a real KVM and on soft, until one differs; that is made small.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from kvmsr.errors import KvmsrError
from tests.differential.compare import differences
from tests.differential.generate import scenarios
from tests.differential.places import PLACES, Place, soft, through_text
from tests.differential.scenario import Scenario
from tests.nested.machine import NestedError
from tests.nested.parts import MissingError

__all__ = ("DifferenceError", "check", "compare", "main")


class DifferenceError(AssertionError):
    """Soft does not do what the real KVM does."""


def compare(place: Place, model: Callable[[Scenario], Any], scenario: Scenario) -> None:
    """
    Play a scenario on a place and on its model.

    :raises DifferenceError: says how they differ, and how to play it again.
    """
    try:
        real = through_text(place.play(scenario))
    except NestedError as error:  # nothing more can be played, so nothing made smaller
        sys.exit(f"the nested machine does not answer: {error}\n{scenario!r}")
    modelled = through_text(model(scenario))
    found = differences(scenario, real, modelled, place.module, place.strange)
    if found:
        lines = "\n  ".join(found[:10])
        raise DifferenceError(
            f"{place.module} and soft:{place.profile} differ:\n  {lines}\n{scenario!r}"
        )


def check(place: Place, examples: int, number: int | None) -> int:
    """
    Compare generated scenarios and return how many.

    :param number: the seed; None: a new one each time.
    :raises DifferenceError: for the smallest scenario that differs.
    """
    model, tried = soft(place.profile), 0

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(scenarios(place.module, place.strange, unlike=place.unlike))
    def run(scenario: Scenario) -> None:
        nonlocal tried
        tried += 1
        compare(place, model, scenario)

    (seed(number)(run) if number is not None else run)()
    return tried


def main() -> int:
    """Run, print, and return the exit status: 1 for a difference, 2 if it could not be tried."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential",
        description="Play generated scenarios on a real KVM and on soft, and compare.",
        epilog="example: python -m tests.differential --on kvm --examples 2000 --seed 1",
    )
    parser.add_argument("--on", choices=sorted(PLACES), default="kvm", help="the real one")
    parser.add_argument("--examples", type=int, default=1000, metavar="N", help="how many")
    parser.add_argument("--seed", type=int, metavar="S", help="the same ones again")
    parser.add_argument("--play", metavar="JSON", help="this scenario alone (Scenario.to_json)")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        with PLACES[arguments.on]() as place:
            if arguments.play:
                scenario = Scenario.from_json(arguments.play)
                compare(place, soft(place.profile), scenario)
                tried = 1
            else:
                tried = check(place, arguments.examples, arguments.seed)
    except (DifferenceError, Flaky) as error:  # the latter: it differs now and then
        print(error)
        return 1
    except (KvmsrError, MissingError, NestedError) as error:
        print(f"{arguments.on}: needs {error}", file=sys.stderr)
        return 2
    print(f"{tried} scenarios, no difference, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
