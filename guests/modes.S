# SPDX-License-Identifier: Apache-2.0
# Reads MSR 0x35 in real, protected and long mode, and prints what it saw, #GP included.
# A flat 16-bit image, loaded and started at 0x7c00.

.include "console.inc"

.set MSR, 0x35
.set PML4, 0x10000
.set PDPT, 0x11000
.set CODE32, 0x08
.set DATA, 0x10
.set CODE64, 0x18

# Read the MSR and print a line. The #GP handlers skip the two bytes of RDMSR and set edi.
.macro READ_AND_PRINT bits, name
        xor     %edi, %edi
        mov     $MSR, %ecx
        rdmsr
        mov     %eax, %ebp
        mov     %edx, %ebx
        mov     $\name, %esi
        push_bx\bits
        call    puts\bits
        pop_bx\bits
        test    %edi, %edi
        jnz     3f
        mov     $equals, %esi
        push_bx\bits
        call    puts\bits
        pop_bx\bits
        call    puthex\bits
        mov     %ebp, %ebx
        call    puthex\bits
        jmp     4f
3:      mov     $fault, %esi
        call    puts\bits
4:      mov     $newline, %esi
        call    puts\bits
.endm

.macro push_bx16
        push    %ebx
.endm
.macro pop_bx16
        pop     %ebx
.endm
.macro push_bx32
        push    %ebx
.endm
.macro pop_bx32
        pop     %ebx
.endm
.macro push_bx64
        push    %rbx
.endm
.macro pop_bx64
        pop     %rbx
.endm

.code16
.globl _start
_start:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %esp
        movw    $gp16, 13 * 4           # the real-mode vector table is at 0
        movw    $0, 13 * 4 + 2
        READ_AND_PRINT 16, name16

        lgdtl   gdt_register
        lidtl   idt_register32
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $CODE32, $protected

gp16:                                   # no error code in real mode
        push    %bp
        mov     %sp, %bp
        addw    $2, 2(%bp)
        pop     %bp
        mov     $1, %edi
        iretw

        CONSOLE 16

.code32
protected:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $0x7c00, %esp
        mov     $gp32, %eax             # finish the gate: code below 64 KiB
        mov     %ax, idt32 + 13 * 8
        READ_AND_PRINT 32, name32

        # Identity-map the first GiB by one large page each of 2 MiB: here one is enough.
        mov     $PML4, %edi
        xor     %eax, %eax
        mov     $0x3000 / 4, %ecx
        rep stosl
        movl    $PDPT + 3, PML4
        movl    $PDPT + 0x1000 + 3, PDPT
        movl    $0x83, PDPT + 0x1000
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x20, %eax             # PAE
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       # EFER
        rdmsr
        or      $0x100, %eax            # LME
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax       # PG
        mov     %eax, %cr0
        ljmp    $CODE64, $long

gp32:
        addl    $2, 4(%esp)             # behind the error code
        mov     $1, %edi
        add     $4, %esp
        iretl

        CONSOLE 32

.code64
long:
        lidt    idt_register64
        mov     $gp64, %eax
        mov     %ax, idt64 + 13 * 16
        READ_AND_PRINT 64, name64
        POWER_OFF

gp64:
        addq    $2, 8(%rsp)
        mov     $1, %edi
        add     $8, %rsp
        iretq

        CONSOLE 64

name16: .asciz  "real rdmsr 0x00000035"
name32: .asciz  "protected rdmsr 0x00000035"
name64: .asciz  "long rdmsr 0x00000035"
equals: .asciz  " = 0x"
fault:  .asciz  " #GP"
newline: .asciz "\r\n"

.balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      # 32-bit code
        .quad   0x00cf93000000ffff      # data
        .quad   0x00af9b000000ffff      # 64-bit code
gdt_register:
        .word   . - gdt - 1
        .long   gdt

.balign 8
idt32:  .fill   13, 8, 0
        .word   0, CODE32, 0x8e00, 0
idt_register32:
        .word   14 * 8 - 1
        .long   idt32

.balign 8
idt64:  .skip   13 * 16
        .word   0, CODE64, 0x8e00, 0
        .quad   0
idt_register64:
        .word   14 * 16 - 1
        .quad   idt64
