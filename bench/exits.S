# SPDX-License-Identifier: Apache-2.0
# A BIOS for benchmarks under QEMU. Each vCPU waits for the others, does something `count` times, and
# notes by the TSC how long that took; all of this `turns` times. Vcpu 0 sends what each one has noted
# to the debug console: the last value that it read, and the ticks of each turn, 8 bytes each. Then it
# leaves by the debug exit. bench/attach.py fills in the parameters.

.set READY, 0x9000                      # in memory: number of vCPUs that are about to begin
.set FINISHED, 0x9004                   # number of those that have
.set RESULTS, 0xa000                    # by vCPU: the value, and the ticks
.set RESULTS_BITS, 12                   # of the size of a vCPU's results, for 511 turns
.set X2APIC_ID, 0x802
.set X2APIC_ICR, 0x830

.code16
.globl _start
_start:                                 # segment 0xf000; the other vCPUs start here, too
        jmp     begin
.balign 4
count:  .long   0
vcpus:  .long   0
what:   .long   0                       # 0: read MSR 0x35; 1: write to a port that no device has
turns:  .long   0

begin:  cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     $0x1b, %ecx             # IA32_APIC_BASE
        rdmsr
        or      $0xc00, %eax            # x2APIC
        wrmsr
        test    $0x100, %eax            # the boot vCPU
        jz      1f
        cmpl    $1, %cs:vcpus
        je      1f
        mov     $X2APIC_ICR, %ecx
        xor     %edx, %edx
        mov     $0x000c4500, %eax       # INIT to all but this one
        wrmsr
        mov     $0x000c46f0, %eax       # start at 0xf0000
        wrmsr
1:      mov     $X2APIC_ID, %ecx
        rdmsr
        shl     $RESULTS_BITS, %eax
        lea     RESULTS(%eax), %edi

        lock incl READY
2:      pause
        mov     READY, %eax
        cmp     %cs:vcpus, %eax
        jne     2b
        mov     %edi, %esi
        mov     %cs:turns, %ebp
turn:   add     $8, %esi
        mov     %cs:count, %ebx
        rdtsc
        mov     %eax, (%esi)
        mov     %edx, 4(%esi)
        cmpl    $0, %cs:what
        jne     ports
        mov     $0x35, %ecx
3:      rdmsr
        dec     %ebx
        jnz     3b
        mov     %eax, (%edi)
        mov     %edx, 4(%edi)
        jmp     note
ports:  mov     $0x2f0, %dx
4:      out     %al, %dx
        dec     %ebx
        jnz     4b
note:   rdtsc
        sub     (%esi), %eax
        sbb     4(%esi), %edx
        mov     %eax, (%esi)
        mov     %edx, 4(%esi)
        dec     %ebp
        jnz     turn

        lock incl FINISHED
        cmp     $RESULTS, %edi
        jne     idle
5:      pause
        mov     FINISHED, %eax
        cmp     %cs:vcpus, %eax
        jne     5b

        mov     $0xe9, %dx              # debug console
        mov     %cs:vcpus, %ebx
6:      mov     %edi, %esi
        mov     %cs:turns, %ecx
        lea     8(,%ecx,8), %ecx
7:      mov     (%esi), %al
        out     %al, %dx
        inc     %esi
        dec     %ecx
        jnz     7b
        add     $1 << RESULTS_BITS, %edi
        dec     %ebx
        jnz     6b
        mov     $0x501, %dx             # debug exit
        xor     %al, %al
        out     %al, %dx
idle:   hlt
        jmp     idle

.org 0xfff0
        ljmp    $0xf000, $_start
.org 0x10000
