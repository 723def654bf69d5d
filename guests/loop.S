# SPDX-License-Identifier: Apache-2.0
# Reads MSR 0x35 many times, for benchmarks. A flat 16-bit image, loaded and started at 0x7c00.
# How many times is the 32-bit number at offset 4.

.set MSR, 0x35

.code16
.globl _start
_start:
        jmp     begin
.balign 4
count:  .long   100000

begin:
        cli
        mov     $MSR, %ecx
        mov     %cs:count, %ebx
1:      rdmsr
        dec     %ebx
        jnz     1b
        mov     $0xf4, %dx              # debug exit
        xor     %al, %al
        out     %al, %dx
2:      hlt
        jmp     2b
