# SPDX-License-Identifier: Apache-2.0
"""Inside the nested machine: play each scenario that is asked for; before, tell the index list."""

from kvmsr import backend
from kvmsr.kvm import Kvm
from tests.differential.machine import play
from tests.differential.scenario import Scenario
from tests.nested.session import answer

if __name__ == "__main__":
    kvm = backend.open("kvm")
    with Kvm(kvm) as system:
        listed = system.get_msr_index_list()
    answer(lambda line: play(kvm, Scenario.from_json(line)) if line != "list" else list(listed))
