# SPDX-License-Identifier: Apache-2.0
# Executes one instruction that ordinary guests use and that a KVM may have to emulate. A flat
# 64-bit image, started at 1 MiB with the case's number in edi; tells how it went by a byte written
# to port 0xf4: 1 done, 2 wrong result, 3 an exception.
#
# The order of the cases is that of CASES in src/kvmsr/machine/probe.py.

.set CODE, 0x10
.set BASE, 0x100000

.code64
.globl _start
_start:
        mov     $failed, %eax           # every gate leads to "failed" ...
        mov     $idt, %ebx
        mov     $32, %ecx
1:      mov     %ax, (%rbx)
        movw    $CODE, 2(%rbx)
        movw    $0x8e00, 4(%rbx)
        mov     %eax, %edx
        shr     $16, %edx
        mov     %dx, 6(%rbx)
        movq    $0, 8(%rbx)
        add     $16, %rbx
        dec     %ecx
        jnz     1b
        mov     $breakpoint, %eax       # ... but that of #BP
        mov     %ax, idt + 3 * 16
        lidt    idt_register
        mov     %cr4, %rax
        or      $0x600, %eax            # OSFXSR, OSXMMEXCPT
        mov     %rax, %cr4
        mov     %edi, %eax
        mov     cases(,%rax,8), %rax
        jmp     *%rax

baseline:
        jmp     done

case_int3:
        xor     %esi, %esi
        int3
        cmp     $1, %esi
        jne     wrong
        jmp     done

case_cmpxchg16b:
        xor     %eax, %eax
        xor     %edx, %edx
        mov     $1, %ebx
        mov     $2, %ecx
        lock cmpxchg16b cell
        jnz     wrong
        cmpq    $2, cell + 8
        jne     wrong
        jmp     done

case_sse:
        movaps  ones, %xmm0
        addps   ones, %xmm0
        movaps  %xmm0, cell
        cmpl    $0x40000000, cell       # 2.0
        jne     wrong
        jmp     done

case_crc32:
        xor     %eax, %eax
        crc32b  ones, %eax
        jmp     done

case_movbe:
        movbe   ones, %eax
        cmp     $0x0000803f, %eax
        jne     wrong
        jmp     done

case_clac:
        clac
        jmp     done

case_xsaveopt:
        mov     %cr4, %rax
        or      $0x40000, %eax          # OSXSAVE
        mov     %rax, %cr4
        mov     $3, %eax
        xor     %edx, %edx
        xsaveopt area
        jmp     done

done:
        mov     $1, %al
        jmp     tell
wrong:
        mov     $2, %al
        jmp     tell
failed:
        mov     $3, %al
tell:
        out     %al, $0xf4
        hlt
        jmp     tell

breakpoint:
        inc     %esi
        iretq

.balign 16
ones:   .long   0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000
cell:   .quad   0, 0
cases:  .quad   baseline, case_int3, case_cmpxchg16b, case_sse, case_crc32, case_movbe
        .quad   case_clac, case_xsaveopt
idt_register:
        .word   32 * 16 - 1
        .quad   idt
.balign 64
area:   .skip   1024
idt:    .skip   32 * 16
