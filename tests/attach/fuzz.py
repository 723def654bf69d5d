"""
Write nonsense into the shared memory, as a guest could that has broken into its VMM, and let the
controller work on it.

    python -m tests.attach.fuzz [COUNT] [SEED]
"""

import faulthandler
import json
import random
import sys
import threading
import time
from contextlib import suppress

from kvmsr import Counter, Model, Policy, Rule, backend
from kvmsr.attach.questions import Questions
from kvmsr.attach.vms import Vms
from kvmsr.errors import PolicyError
from kvmsr.kvm import Kvm
from kvmsr.native import ffi, lib
from kvmsr.session import End, EndKind, Session
from kvmsr.session.watching import Watching

ASKED = []
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x35, 0x7F, 0x80, 0xFF, 1 << 12, 1 << 16, 1 << 31, (1 << 32) - 1)


def asked(access):
    """Note an access that a handler was asked about."""
    if access.index != 0x35 or str(access.op) != "read":
        ASKED.append(access)
    return 5


POLICY = Policy(
    [
        Rule(0x35, read=asked, write="ignore"),
        Rule("0x100-0x10f", read="shadow", write="shadow", bits={"0": "lock"}, keep=True),
        Rule(0x36, read=Counter(1000), when={"after": 3}, log="always"),
        Rule("0x3a", read=Model("feature-control"), write=Model("feature-control")),
    ]
)


class Fuzzer:
    """
    A controller's side of the block, and an adversary.

    :param seed: where to begin; the same seed writes the same nonsense.
    """

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.lines = 0
        self.kvm = Kvm(backend.open("kvm"))
        self.session = Session(POLICY, self.kvm, log=self._line, vcpus=4)
        self.block = self.session.shared.block
        for vm in range(2):
            self.block.take_vm()
            for vcpu in range(2):
                self.block.new_cpu(vm, vcpu)
        self.questions = Questions(self.session, self.block, lambda *_: None, lambda: None)
        self.vms = Vms(self.block)
        self.watching = Watching(self.session)
        raw = self.block.raw
        whole = [*(self.block.vm(vm) for vm in (0, 1, 127)), *map(self.block.vcpu, range(4))]
        heads = [ffi.cast("uint32_t *", one) for one in (raw, *whole)]
        self.places = [(head, 64) for head in heads]
        for vcpu in map(self.block.vcpu, range(4)):
            self.places.append((ffi.cast("uint32_t *", ffi.addressof(vcpu, "upcall")), 32))
            self.places.append((ffi.cast("uint32_t *", vcpu.rows), 256))
            self.places.append((ffi.cast("uint32_t *", vcpu.events), 256))
            self.places.append((ffi.cast("uint32_t *", vcpu.n_recent), lib.KVMSR_WATCHED))
            self.places.append((ffi.cast("uint32_t *", vcpu.recent), 256))
            self.places.append((ffi.cast("uint32_t *", ffi.addressof(vcpu, "head")), 32))
        for vm in (0, 1):
            shadows = ffi.cast("uint32_t *", self.block.vm(vm).shadows)
            self.places.append((shadows, 6 * lib.KVMSR_SHADOW_SLOTS))
        self.places.append((ffi.cast("uint32_t *", raw.others.page_of), 1 << 16))
        self.states = [self.session.state()]
        # The dearer ones come more rarely.
        self.works = [
            (self.questions.serve, 4000),
            (self.vms.look, 1000),
            (self.report, 1),
            (self.watch, 1),
            (self.keep, 1),
            (self.restore, 1),
            (self.session.reset, 1),
            (self.replace, 1),
        ]

    def _line(self, access, outcome, line):
        self.lines += 1

    def report(self):
        """Report what was counted, as at the end of a run."""
        end = End(EndKind.VMM)
        result = self.session.result("", end, 1.0, vms=self.vms.reports(), losses=self.losses())
        json.dumps(result.as_dict())

    def watch(self):
        """Tell what kvmsr top asks for."""
        _, rows = self.watching.rows(self.session.summary(), 0)
        json.dumps([row.as_dict() for row in rows])
        json.dumps(self.watching.msr(self.chance.choice(NUMBERS)))

    def losses(self):
        return list(self.vms.losses())

    def keep(self):
        """Save the registers."""
        self.states = [self.session.state()]
        self.states[0].as_json()

    def restore(self):
        """Restore registers that were saved, if VMs have as many vCPUs now as they had then."""
        with suppress(PolicyError):
            self.session.restore(self.states[0])

    def replace(self):
        """Replace the policy."""
        for vcpu in self.block.vcpus():  # else it waits for a second, and gives up
            vcpu.reading = 0
        self.session.replace(POLICY)

    def write(self):
        """Write a few numbers somewhere."""
        for _ in range(self.chance.randint(1, 4)):
            place, size = self.chance.choice(self.places)
            number = self.chance.choice(NUMBERS) if self.chance.random() < 0.7 else 0
            place[self.chance.randrange(size)] = number or self.chance.getrandbits(32)
        vcpu = self.block.vcpu(self.chance.randrange(4))
        if self.chance.random() < 0.3:  # else hardly anything would be a question
            vcpu.upcall.state = self.chance.getrandbits(30) << 2 | lib.KVMSR_ASKED
            vcpu.taken = lib.KVMSR_TAKEN

    def work_once(self):
        """Do everything once."""
        for work, _ in self.works:
            work()

    def run(self, count):
        """Write nonsense *count* times, and let the controller work after each."""
        works, weights = zip(*self.works, strict=True)
        for done in range(count):
            self.write()
            self.chance.choices(works, weights)[0]()
            if done % 10_000 == 0 and sys.stderr.isatty():
                print(f"\r{done:,}", end="", file=sys.stderr, flush=True)

    def close(self):
        """End the threads."""
        self.questions.close()
        time.sleep(1.2)
        alive = threading.active_count()
        self.session.close()
        self.kvm.close()
        return alive


def main():
    faulthandler.enable()
    count, seed = (int(word) for word in (*sys.argv[1:], *("1000000", "1")[len(sys.argv) - 1 :]))
    begun = time.monotonic()
    fuzzer = Fuzzer(seed)
    fuzzer.run(count)
    fuzzer.close()
    print(
        f"{count:,} blocks in {time.monotonic() - begun:.0f} s: {fuzzer.lines:,} log lines,"
        f" {len(ASKED)} questions that no rule covers reached a handler"
    )
    sys.exit(bool(ASKED))


if __name__ == "__main__":
    main()
