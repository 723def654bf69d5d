/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the controller is alive, without a system call: a vCPU's thread may be confined to few of
 * them.
 *
 * The controller holds a robust mutex for as long as it lives. When its process ends, however that
 * happens, the kernel marks the mutex (get_robust_list(2)). The VMM only reads the mutex's first
 * word, which in the GNU C library is a futex: its owner's thread ID, or 0, and FUTEX_OWNER_DIED.
 */
#include <linux/futex.h>
#include <pthread.h>

#include "core.h"

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct kvmsr_tables *)0)->life), "life");

/* Show the calling thread, which must be the process's first, as the controller. 0 if it fails. */
int kvmsr_live(struct kvmsr_tables *tables)
{
	pthread_mutex_t *mutex = (pthread_mutex_t *)tables->life;
	pthread_mutexattr_t how;

	pthread_mutexattr_init(&how);
	pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
	int result = pthread_mutex_init(mutex, &how);

	pthread_mutexattr_destroy(&how);
	return !result && !pthread_mutex_lock(mutex);
}

/* The controller ends: what needs it gets no answer from now on. */
void kvmsr_end(struct kvmsr_tables *tables)
{
	pthread_mutex_unlock((pthread_mutex_t *)tables->life);
}

int kvmsr_lives(const struct kvmsr_tables *tables)
{
	uint32_t word = __atomic_load_n(&tables->life[0], __ATOMIC_ACQUIRE);

	return word & FUTEX_TID_MASK && !(word & FUTEX_OWNER_DIED);
}
