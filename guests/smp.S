# SPDX-License-Identifier: Apache-2.0
# Each vCPU writes its APIC ID to MSR 0x474f4f00 and reads it back, many times; the boot CPU waits
# for the others and leaves by the debug exit: 0 all read what they wrote, 1 one did not. A flat
# 32-bit image, loaded and started at 1 MiB.

.set MSR, 0x474f4f00
.set ROUNDS, 1000
.set LAPIC_ICR, 0xfee00300
.set TRAMPOLINE, 0x8000                 # SIPI's vector 8
.set FINISHED, 0x9000                   # how many have, and how many saw something wrong
.set WRONG, 0x9004

# Write and read back, in whatever mode; uses all general registers.
.macro EXERCISE
        mov     $1, %eax
        cpuid
        shr     $24, %ebx               # the APIC ID
        mov     $ROUNDS, %edi
1:      mov     %ebx, %eax
        mov     %edi, %edx
        mov     $MSR, %ecx
        wrmsr
        xor     %eax, %eax
        xor     %edx, %edx
        rdmsr
        cmp     %ebx, %eax
        jne     2f
        cmp     %edi, %edx
        jne     2f
        dec     %edi
        jnz     1b
        jmp     3f
2:      lock incl WRONG
3:      lock incl FINISHED
.endm

.code32
.globl _start
_start:
        cli
        cld
        movl    $0, FINISHED
        movl    $0, WRONG
        mov     $trampoline, %esi
        mov     $TRAMPOLINE, %edi
        mov     $trampoline_end - trampoline, %ecx
        rep movsb
        movl    $0x000c4500, LAPIC_ICR          # INIT to all but this one
        mov     $100000, %ecx
1:      pause
        loop    1b
        movl    $0x000c4600 + (TRAMPOLINE >> 12), LAPIC_ICR
        EXERCISE
        mov     $0x510, %dx                     # fw_cfg: how many vCPUs there are
        mov     $5, %ax
        out     %ax, %dx
        inc     %dx
        in      %dx, %al
        movzbl  %al, %ebx
1:      pause
        cmp     %ebx, FINISHED
        jne     1b
        mov     WRONG, %eax
        mov     $0xf4, %dx
        out     %al, %dx
2:      hlt
        jmp     2b

.code16
trampoline:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        EXERCISE
4:      hlt
        jmp     4b
trampoline_end:
