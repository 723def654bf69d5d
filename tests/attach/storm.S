/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accesses MSRs in rounds, checks what it gets, and counts. A flat image for 0x7c00 in real mode. Each
 * vCPU has a segment of its own, which storm.c has filled in, and which holds its counts; struct area
 * there is the same. A #GP sets `faulted` and goes on after the instruction.
 */

.set CONSTANT, 0x474f4f01               /* one of two constants, which differ in EAX */
.set KNOWN, 0x277                       /* the same, but KVM has this MSR */
.set SHADOW, 0x474f4f02
.set SEQUENCE, 0x474f4f03               /* a handler: how often this vCPU has asked */
.set RAISES, 0x474f4f04
.set NONSENSE, 0x474f4f05
.set NUMBERED, 0x474f4f06               /* a handler that wants the numbers 1, 2, 3 and so on */
.set SLEEPS, 0x474f4f07                 /* as SEQUENCE, but slowly and rarely */

.set rounds, 0                          /* left */
.set bad, 4                             /* number of wrong answers; the first one: */
.set bad_msr, 8
.set bad_low, 12
.set bad_high, 16
.set faulted, 20
.set gone, 24                           /* number of #GPs from handlers that should not fail */
.set constant, 28                       /* numbers of accesses */
.set known, 32
.set written, 36
.set shadow, 40
.set sequence, 44
.set raises, 48
.set nonsense, 52
.set numbered, 56
.set sleeps, 60

.macro READ msr, count
        mov     $\msr, %ecx
        mov     $0xdeadbeef, %eax
        mov     %eax, %edx
        movb    $0, faulted
        rdmsr
        incl    \count
.endm

/* One of two values, at once. */
.macro CHECK_CONSTANT msr, count
        READ    \msr, \count
        call    check_constant
.endm

/* A handler that counts; COUNT includes this access. */
.macro CHECK_COUNTING msr, count
        READ    \msr, \count
        mov     \count, %ebx
        call    check_counting
.endm

/* A handler that fails. */
.macro CHECK_FAULT msr, count
        READ    \msr, \count
        cmpb    $1, faulted
        je      1f
        call    wrong
1:
.endm

.code16
.globl _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %es
        movw    $gp, %es:13 * 4
        movw    %ax, %es:13 * 4 + 2

round:
.rept 12
        CHECK_CONSTANT CONSTANT, constant
        CHECK_CONSTANT KNOWN, known

        mov     $SHADOW, %ecx
        mov     shadow, %eax
        mov     %eax, %edx
        not     %edx
        movb    $0, faulted
        wrmsr
        incl    written
        cmpb    $0, faulted
        je      1f
        call    wrong
1:      mov     shadow, %ebx
        READ    SHADOW, shadow
        cmpb    $0, faulted
        jne     1f
        cmp     %ebx, %eax
        jne     1f
        not     %ebx
        cmp     %ebx, %edx
        je      2f
1:      call    wrong
2:
.endr
        CHECK_COUNTING SEQUENCE, sequence
        CHECK_FAULT RAISES, raises
        CHECK_FAULT NONSENSE, nonsense

        mov     $NUMBERED, %ecx
        incl    numbered
        mov     numbered, %eax
        xor     %edx, %edx
        movb    $0, faulted
        wrmsr
        cmpb    $0, faulted
        je      1f
        incl    gone
1:
        testb   $0xff, rounds
        jnz     1f
        CHECK_COUNTING SLEEPS, sleeps
1:
        decl    rounds
        jnz     round
        out     %al, $0xf4
2:      hlt
        jmp     2b

check_constant:
        cmpb    $0, faulted
        jne     wrong
        cmp     $0x5a5a, %edx
        jne     wrong
        cmp     $0x1234, %eax
        je      1f
        cmp     $0x4321, %eax
        jne     wrong
1:      ret

/* Once it has failed, because the controller is gone, it must go on to fail. */
check_counting:
        cmpb    $0, faulted
        je      1f
        incl    gone
        ret
1:      cmpl    $0, gone
        jne     wrong
        cmp     %ebx, %eax
        jne     wrong
        cmp     $0x600d, %edx
        jne     wrong
        ret

wrong:  incl    bad
        cmpl    $1, bad
        jne     1f
        mov     %ecx, bad_msr
        mov     %eax, bad_low
        mov     %edx, bad_high
1:      ret

/* #GP: skip the two bytes of RDMSR or WRMSR. */
gp:     push    %bp
        mov     %sp, %bp
        addw    $2, 2(%bp)
        pop     %bp
        movb    $1, faulted
        iret
