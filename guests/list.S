# SPDX-License-Identifier: Apache-2.0
# Accesses the MSRs that its command line lists, and prints what it saw, #GP included. A multiboot
# image that goes to long mode. Each word of the command line behind the first is
#
#       0x35            read MSR 0x35
#       0x35=0x1234     write 0x1234 to it
#
# and gives a line of output:
#
#       rdmsr 0x00000035 = 0x0000000000020004
#       rdmsr 0x00000035 #GP
#       wrmsr 0x00000035 = 0x0000000000001234
#       wrmsr 0x00000035 = 0x0000000000001234 #GP

.include "console.inc"

.set MAGIC, 0x1badb002
.set CODE64, 0x08
.set DATA, 0x10

.section .text
.balign 4
        .long   MAGIC, 0, -MAGIC

.code32
.globl _start
_start:
        cli
        cld
        mov     $stack, %esp
        mov     %ebx, information
        movl    $pdpt + 3, pml4
        movl    $directory + 3, pdpt
        movl    $0x83, directory        # the first 4 MiB: image, information, command line
        movl    $0x200083, directory + 8
        mov     $pml4, %eax
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
        lgdt    gdt_register
        ljmp    $CODE64, $long

.code64
long:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $stack, %esp
        mov     $gp, %eax               # finish the gate
        mov     %ax, idt + 13 * 16
        shr     $16, %eax
        mov     %ax, idt + 13 * 16 + 6
        lidt    idt_register
        mov     information, %eax
        mov     16(%rax), %r12d         # the command line; r12 walks along it

skip_name:
        mov     (%r12), %al
        test    %al, %al
        jz      done
        inc     %r12
        cmp     $' ', %al
        jne     skip_name

next_word:
        mov     (%r12), %al
        cmp     $' ', %al
        jne     1f
        inc     %r12
        jmp     next_word
1:      test    %al, %al
        jz      done
        call    number
        mov     %rax, %r13              # the MSR
        cmpb    $'=', (%r12)
        je      write

        mov     $rdmsr_text, %esi
        call    puts64
        mov     %r13d, %ebx
        call    puthex64
        mov     %r13d, %ecx
        xor     %edi, %edi
        rdmsr
        test    %edi, %edi
        jnz     faulted
        mov     %eax, %r14d
        mov     %edx, %r15d
        call    print_value
        jmp     end_line

write:
        inc     %r12
        call    number
        mov     %rax, %r14              # the value, low and high half
        mov     %rax, %r15
        shr     $32, %r15
        mov     $wrmsr_text, %esi
        call    puts64
        mov     %r13d, %ebx
        call    puthex64
        call    print_value
        mov     %r13d, %ecx
        mov     %r14d, %eax
        mov     %r15d, %edx
        xor     %edi, %edi
        wrmsr
        test    %edi, %edi
        jz      end_line
faulted:
        mov     $fault, %esi
        call    puts64
end_line:
        mov     $newline, %esi
        call    puts64
        jmp     next_word

done:
        POWER_OFF

# Print r15:r14.
print_value:
        mov     $equals, %esi
        call    puts64
        mov     %r15d, %ebx
        call    puthex64
        mov     %r14d, %ebx
        call    puthex64
        ret

# Read a hexadecimal number, with or without 0x, at r12 into rax; r12 ends behind it.
number:
        xor     %eax, %eax
        cmpb    $'x', 1(%r12)
        jne     1f
        add     $2, %r12
1:      movzbl  (%r12), %edx
        or      $0x20, %dl              # letters to lower case; digits have this bit anyway
        sub     $'0', %dl
        cmp     $9, %dl
        jbe     2f
        sub     $('a' - '0' - 10), %dl
        cmp     $10, %dl
        jb      3f
        cmp     $15, %dl
        ja      3f
2:      shl     $4, %rax
        or      %rdx, %rax
        inc     %r12
        jmp     1b
3:      cmpb    $' ', (%r12)            # anything else ends the number: skip to the word's end
        jbe     4f
        cmpb    $'=', (%r12)
        je      4f
        inc     %r12
        jmp     3b
4:      ret

# #GP: skip the two bytes of RDMSR or WRMSR, and tell.
gp:
        addq    $2, 8(%rsp)
        mov     $1, %edi
        add     $8, %rsp
        iretq

        CONSOLE 64

rdmsr_text: .asciz "rdmsr 0x"
wrmsr_text: .asciz "wrmsr 0x"
equals: .asciz  " = 0x"
fault:  .asciz  " #GP"
newline: .asciz "\r\n"

.balign 8
gdt:
        .quad   0
        .quad   0x00af9b000000ffff      # 64-bit code
        .quad   0x00cf93000000ffff      # data
gdt_register:
        .word   . - gdt - 1
        .long   gdt
.balign 8
idt:    .skip   13 * 16
        .word   0, CODE64, 0x8e00, 0
        .quad   0
idt_register:
        .word   14 * 16 - 1
        .quad   idt

.section .bss
.balign 4096
pml4:   .skip   4096
pdpt:   .skip   4096
directory: .skip 4096
        .skip   4096
stack:
information: .skip 8
