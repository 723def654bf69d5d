/* SPDX-License-Identifier: Apache-2.0 */
/* The shared memory, inherited from the controller. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

struct kvmsr_block *kvmsr_block;
const struct kvmsr_tables *kvmsr_tables;
pthread_mutex_t kvmsr_changing = PTHREAD_MUTEX_INITIALIZER;

static int (*real_ioctl)(int, unsigned long, ...);

static __attribute__((constructor)) void find_real(void)
{
	real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	/* The soft backend's library may be behind this one. */
	kvmsr_served = (long (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "kvmsr_soft_ioctl");
}

/* Call the next ioctl: the C library's, or that of another preloaded library. */
int kvmsr_call(int fd, unsigned long request, void *argument)
{
	if (real_ioctl)
		return real_ioctl(fd, request, argument);
	long result = kvmsr_ioctl(fd, request, argument);

	return result < 0 ? failed(result) : result;
}

/*
 * Map a file of shared memory and store its size. Return NULL if FD is something else. The mapping
 * is made accessible only after munlock(), so that the pages of a VMM that locks all its memory
 * (mlockall(2), MCL_FUTURE) are not all allocated at once.
 */
static void *map(int fd, int protection, size_t *size)
{
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat) || !S_ISREG(stat.st_mode) || !stat.st_size)
		return NULL;
	void *found = mmap(NULL, stat.st_size, PROT_NONE, MAP_SHARED, fd, 0);

	if (found == MAP_FAILED)
		return NULL;
	munlock(found, stat.st_size);
	if (mprotect(found, stat.st_size, protection)) {
		munmap(found, stat.st_size);
		return NULL;
	}
	*size = stat.st_size;
	return found;
}

static int attach_to(int block_fd, int tables_fd)
{
	size_t block_size = 0, tables_size = 0;
	struct kvmsr_block *block = map(block_fd, PROT_READ | PROT_WRITE, &block_size);
	struct kvmsr_tables *tables = map(tables_fd, PROT_READ, &tables_size);

	if (block && tables && !kvmsr_block_check(block, block_size, tables, tables_size)) {
		kvmsr_tables = tables;
		kvmsr_block = block;
		return 1;
	}
	if (block)
		munmap(block, block_size);
	if (tables)
		munmap(tables, tables_size);
	return 0;
}

static int open_of(int pid, int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
	return open(path, O_RDWR | O_CLOEXEC);
}

static void before_fork(void)
{
	pthread_mutex_lock(&kvmsr_changing);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&kvmsr_changing);
}

/*
 * Map the shared memory, once: by the inherited descriptors or, if the VMM has closed them, by the
 * controller's own.
 */
void kvmsr_attach(void)
{
	static int tried;
	const char *text = getenv("KVMSR_BLOCK");
	int controller, block, tables;

	if (tried || !text || sscanf(text, "%d:%d:%d", &controller, &block, &tables) != 3)
		return;
	tried = 1;
	if (!attach_to(block, tables)) {
		block = open_of(controller, block);
		tables = open_of(controller, tables);
		attach_to(block, tables);
		if (block >= 0)
			close(block);
		if (tables >= 0)
			close(tables);
	}
	pthread_atfork(before_fork, after_fork, after_fork);
}

/* Must a VM that cannot be under the policy not run? */
int kvmsr_required(void)
{
	return getenv("KVMSR_REQUIRE") != NULL;
}
