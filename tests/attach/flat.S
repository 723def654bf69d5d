/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses MSRs in real mode, and prints what it saw in the words of guests/list.S. A flat image that
 * can be started at offset 0 of any segment. It ends by a reset.
 */
.include "console.inc"

.code16
.globl _start
_start:
        cli
        cld
        mov     %cs, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0xf000, %sp
        xor     %cx, %cx
        mov     %cx, %es
        movw    $gp, %es:13 * 4
        mov     %ax, %es:13 * 4 + 2
        mov     $list, %di

next:   mov     (%di), %ebp             # the MSR
        test    %ebp, %ebp
        jz      done
        movb    $0, faulted
        cmpl    $0, 4(%di)
        jne     write
        mov     $rdmsr_text, %si
        call    puts16
        mov     %ebp, %ebx
        call    puthex16
        mov     %ebp, %ecx
        rdmsr
        mov     %eax, value
        mov     %edx, value + 4
        cmpb    $0, faulted
        jne     fault
        call    print_value
        jmp     end_line

write:  mov     $wrmsr_text, %si
        call    puts16
        mov     %ebp, %ebx
        call    puthex16
        mov     8(%di), %eax
        mov     %eax, value
        movl    $0, value + 4
        call    print_value
        mov     %ebp, %ecx
        mov     value, %eax
        xor     %edx, %edx
        wrmsr
        cmpb    $0, faulted
        je      end_line
fault:  mov     $fault_text, %si
        call    puts16
end_line:
        mov     $newline, %si
        call    puts16
        add     $12, %di
        jmp     next

done:   mov     $0xfe, %al              # the keyboard controller resets the machine
        out     %al, $0x64
1:      hlt
        jmp     1b

print_value:
        mov     $equals, %si
        call    puts16
        mov     value + 4, %ebx
        call    puthex16
        mov     value, %ebx
        call    puthex16
        ret

/* #GP: skip the two bytes of RDMSR or WRMSR. */
gp:     push    %bp
        mov     %sp, %bp
        addw    $2, 2(%bp)
        pop     %bp
        movb    $1, %cs:faulted
        iret

CONSOLE 16

rdmsr_text: .asciz "rdmsr 0x"
wrmsr_text: .asciz "wrmsr 0x"
equals: .asciz " = 0x"
fault_text: .asciz " #GP"
newline: .asciz "\r\n"
faulted: .byte 0
.balign 4
value:  .long   0, 0

/* MSR, whether to write, and what. */
list:   .long   0x35, 0, 0,  0x35, 1, 1
        .long   0x1b0, 0, 0,  0x1b0, 1, 0x55,  0x1b0, 0, 0
        .long   0x277, 0, 0,  0x277, 1, 1
        .long   0x36, 0, 0,  0x474f4f00, 0, 0
        .long   0
