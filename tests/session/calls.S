# SPDX-License-Identifier: Apache-2.0
# Reads MSRs in functions that others have called: with frame pointers, without, and with a stack
# pointer that leads nowhere. A flat 16-bit image, loaded and started at 0x7c00.
#
# Each MSR is read at one place only, but MSR 0x35, which two functions read by a third.

.set PML4, 0x10000
.set CODE32, 0x08
.set DATA, 0x10
.set CODE64, 0x18
.set A, 0x474f4f00

.code16
.globl _start
_start:
        jmp     begin
.balign 4
        .long   0                       # tests/attach/vmm.c writes here
begin:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        lgdtl   gdt_register
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $CODE32, $protected

.code32
protected:
        mov     $DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $0x7c00, %esp
        xor     %ebp, %ebp
        mov     $A + 0x32, %ecx
        call    in_32_bits
after_32_bits:
        mov     $PML4, %edi
        xor     %eax, %eax
        mov     $0x3000 / 4, %ecx
        rep stosl
        movl    $PML4 + 0x1003, PML4
        movl    $PML4 + 0x2003, PML4 + 0x1000
        mov     $0x83, %eax             # the first GiB, of which there are 16 MiB
        mov     $PML4 + 0x2000, %edi
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        cmp     $PML4 + 0x3000, %edi
        jne     1b
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x20, %eax
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmp    $CODE64, $long

.globl in_32_bits, after_32_bits
in_32_bits:
        rdmsr
        ret

.code64
.globl long
long:
        mov     $0x12345, %rbp
        call    bare_outer
.globl after_bare_outer
after_bare_outer:
        xor     %ebp, %ebp
        call    framed_outer
.globl after_framed_outer
after_framed_outer:
        mov     $0x12345, %rbp
        call    one_way
.globl after_one_way
after_one_way:
        call    other_way
.globl after_other_way
after_other_way:

.macro LOST msr, sp, bp
        movabs  $\sp, %rsp
        movabs  $\bp, %rbp
        mov     $A + \msr, %ecx
        rdmsr
.endm
        LOST    0x80, 0, 0
        LOST    0x81, 0x8000000000000000, 0x8000000000000000
        LOST    0x82, 0x40000000, 0x40000000            # no page
        LOST    0x83, 0x3ffffff8, 0x3ffffff0            # no memory there, and the last page
        LOST    0x84, 0xfffff8, 0xfffff0              # the end of memory
        LOST    0x85, 0xfffffffffffffff8, 0xfffffffffffffff0
        LOST    0x86, loop_of_frames, loop_of_frames
        LOST    0x87, 0x7001, 0x7003
        LOST    0x88, begin_of_code, begin_of_code
        mov     $0xf4, %edx
        xor     %eax, %eax
        out     %al, %dx
1:      hlt
        jmp     1b

# With frame pointers

.globl framed_outer
framed_outer:
        push    %rbp
        mov     %rsp, %rbp
        call    framed_middle
.globl after_framed_middle
after_framed_middle:
        pop     %rbp
        ret

.globl framed_middle
framed_middle:
        push    %rbp
        mov     %rsp, %rbp
        sub     $24, %rsp
        mov     $A + 1, %ecx
        call    leaf                    # which makes no frame
.globl after_leaf
after_leaf:
        mov     $A + 2, %ecx
        rdmsr                           # here the frame is the function's own
        leave
        ret

.globl leaf
leaf:
        rdmsr
        ret

# Without

.globl bare_outer
bare_outer:
        push    %rbx
        call    noise                   # which leaves return addresses on the stack
        lea     bare_middle(%rip), %rax
        call    *%rax
.globl after_bare_middle
after_bare_middle:
        pop     %rbx
        ret

        .skip   4096                    # far from the function that calls it indirectly
.globl bare_middle
bare_middle:
        sub     $56, %rsp               # nothing writes there
        mov     $A + 3, %ecx
        call    bare_leaf
.globl after_bare_leaf
after_bare_leaf:
        add     $56, %rsp
        ret

.globl bare_leaf
bare_leaf:
        push    %rbx
        push    $0x1234
        rdmsr
        add     $8, %rsp
        pop     %rbx
        ret

.globl noise
noise:
        push    %rbx
        push    %rbx
        call    nothing
        call    nothing
        add     $16, %rsp
        ret
nothing:
        call    1f
1:      add     $8, %rsp
        ret

# MSR 0x35 in two ways

.globl one_way
one_way:
        call    read_35
.globl after_read_35_one_way
after_read_35_one_way:
        ret
.globl other_way
other_way:
        nop
        call    read_35
.globl after_read_35_other_way
after_read_35_other_way:
        ret
.globl read_35
read_35:
        mov     $0x35, %ecx
        rdmsr
        ret

.balign 8
loop_of_frames:
        .quad   loop_of_frames
        .quad   after_leaf
        .fill   16, 8, 0
begin_of_code:
        .quad   _start, _start + 1, _start + 6, 0, -1
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff
        .quad   0x00cf93000000ffff
        .quad   0x00af9b000000ffff
gdt_register:
        .word   . - gdt - 1
        .long   gdt
