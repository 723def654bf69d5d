# SPDX-License-Identifier: Apache-2.0
# A BIOS for benchmarks under QEMU. Each vCPU waits for the others, does something `count` times, and
# notes how many ticks of the TSC that took. Vcpu 0 sends each one's ticks and the last value that it
# read to the debug console, 8 bytes each, and leaves by the debug exit. bench/attach.py fills in the
# parameters.

.set READY, 0x9000                      # in memory: number of vCPUs that are about to begin
.set FINISHED, 0x9004                   # number of those that have
.set RESULTS, 0x9010                    # by vCPU: ticks, value
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
        shl     $4, %eax
        lea     RESULTS(%eax), %edi

        lock incl READY
2:      pause
        mov     READY, %eax
        cmp     %cs:vcpus, %eax
        jne     2b
        rdtsc
        mov     %eax, %esi
        mov     %edx, %ebp
        mov     %cs:count, %ebx
        cmpl    $0, %cs:what
        jne     ports
        mov     $0x35, %ecx
3:      rdmsr
        dec     %ebx
        jnz     3b
        mov     %eax, 8(%edi)
        mov     %edx, 12(%edi)
        jmp     note
ports:  mov     $0x2f0, %dx
4:      out     %al, %dx
        dec     %ebx
        jnz     4b
note:   rdtsc
        sub     %esi, %eax
        sbb     %ebp, %edx
        mov     %eax, (%edi)
        mov     %edx, 4(%edi)
        lock incl FINISHED
        cmp     $RESULTS, %edi
        jne     idle
5:      pause
        mov     FINISHED, %eax
        cmp     %cs:vcpus, %eax
        jne     5b

        mov     %cs:vcpus, %ecx
        shl     $4, %ecx
        mov     $RESULTS, %si
        mov     $0xe9, %dx              # debug console
6:      mov     (%si), %al
        out     %al, %dx
        inc     %si
        dec     %ecx
        jnz     6b
        mov     $0x501, %dx             # debug exit
        xor     %al, %al
        out     %al, %dx
idle:   hlt
        jmp     idle

.org 0xfff0
        ljmp    $0xf000, $_start
.org 0x10000
