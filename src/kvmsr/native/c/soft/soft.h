/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The soft backend under an unmodified program, a library that is preloaded behind the shim: what
 * its files share. It plays /dev/kvm; the shim above it takes it for the kernel.
 *
 * Calls go upwards only, in this order: signals, python (the interpreter that the backend runs in),
 * objects (which descriptor is which of KVM's objects), files (the device file), ioctl.
 *
 * The descriptors that the program gets are memory files (memfd_create(2)) without a name, and a
 * vCPU's holds its kvm_run page. So the kernel itself does mmap, dup, fork and close on them, and
 * whose one is, its inode tells.
 */
#ifndef KVMSR_SOFT_H
#define KVMSR_SOFT_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/types.h>

#define PUBLIC __attribute__((visibility("default")))
#define KVM_DEVICE "/dev/kvm"

/* Export a function by another name too, whatever type a header gives that one. */
#define ALSO(of, name) __asm__(".globl " #name "\n.set " #name ", " #of)

/* What Python has to offer; kvmsr.backend.soft.serving fills it in. */
struct soft_calls {
	const char *settings; /* the environment variable's text */
	char failure[512]; /* why it could not be filled in */
	/* Each returns a new descriptor, or another result, or a negative errno. */
	long (*open)(void);
	long (*ioctl)(uint64_t inode, unsigned long request, void *argument, uint64_t blocked);
	void (*close)(uint64_t inode);
};

/* signals.c */
uint64_t soft_hold(void);
void soft_let_go(uint64_t before);
void soft_runs(uint64_t blocked);
void soft_returns(void);

/* python.c */
extern struct soft_calls soft_calls;
int soft_start(void);
void soft_python_before_fork(void);
void soft_python_in_parent(void);
void soft_python_in_child(void);

/* objects.c */
enum soft_kind { SOFT_SYSTEM, SOFT_VM, SOFT_VCPU };

struct soft_object {
	struct soft_object *next;
	uint64_t inode;
	enum soft_kind kind;
	pid_t pid; /* the process that has created it */
	uint32_t users; /* threads that are about to do something with it, or at it */
	uint32_t missing; /* how many times in a row no descriptor was found to refer to it */
	pthread_mutex_t busy; /* of a vCPU: one ioctl at a time */
	int has_mask; /* KVM_SET_SIGNAL_MASK is in use */
	uint64_t mask;
};

int soft_is_ours(int fd, enum soft_kind *kind);
int soft_add(int fd, enum soft_kind kind);
struct soft_object *soft_take(int fd);
void soft_put(struct soft_object *object);
void soft_sweep(void);
void soft_objects_before_fork(void);
void soft_objects_after_fork(void);

#endif
