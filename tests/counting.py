"""A guest that counts in two MSRs, and finds out if one of its writes is lost."""

from kvmsr.errors import UsageError
from kvmsr.session import control

MSR = 0x1B0
BAD = 0x2A
SHADOW = f'[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = "shadow"\nwrite = "shadow"\n'

# Counts in EBX and alternately in two MSRs, as long as all agree; otherwise it writes BAD to the
# debug exit. There are two MSRs so that, wherever the guest is stopped, one of them is not about to
# be written. This is real-mode code.
COUNTING = bytes.fromhex(
    "66b9b0010000"  # mov ecx, 0x1b0
    "6631db"  # xor ebx, ebx
    "0f32"  # again: rdmsr
    "6639d8"  # cmp eax, ebx
    "7511"  # jne bad
    "6640"  # inc eax
    "0f30"  # wrmsr
    "6683f101"  # xor ecx, 1
    "f6c101"  # test cl, 1
    "75ec"  # jnz again
    "6643"  # inc ebx
    "ebe8"  # jmp again
    "ba0105"  # bad: mov dx, 0x501
    "b02a"  # mov al, 0x2a
    "ee"  # out dx, al
    "f4"  # hlt
)


def status(pid):
    """Return the status of a run, as kvmsr ctl gets it; None if there is none yet."""
    try:
        return control.ask(str(pid), {"do": "status"})
    except UsageError:
        return None
