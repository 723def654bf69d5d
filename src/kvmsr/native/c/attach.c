/* SPDX-License-Identifier: Apache-2.0 */
/* The shared block, inherited from the controller, and whether the controller is alive. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

struct kvmsr_block *kvmsr_block;
pthread_mutex_t kvmsr_changing = PTHREAD_MUTEX_INITIALIZER;

static int controller, life = -1;

/* Call the next ioctl: the C library's, or that of another preloaded library. */
int kvmsr_call(int fd, unsigned long request, void *argument)
{
	static int (*real)(int, unsigned long, ...);

	if (!real)
		real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	if (real)
		return real(fd, request, argument);
	long result = kvmsr_ioctl(fd, request, argument);

	return result < 0 ? failed(result) : result;
}

/* Map the block that FD refers to. Return NULL if FD is something else. */
static struct kvmsr_block *block_in(int fd)
{
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat) || !S_ISREG(stat.st_mode) ||
	    stat.st_size < (off_t)sizeof(struct kvmsr_block))
		return NULL;
	void *found = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (found == MAP_FAILED)
		return NULL;
	if (!kvmsr_block_check(found, stat.st_size))
		return found;
	munmap(found, stat.st_size);
	return NULL;
}

/*
 * Map the block, once: by the inherited descriptor or, if the VMM has closed it, by the
 * controller's own descriptor.
 */
void kvmsr_attach(void)
{
	static int tried;
	const char *text = getenv("KVMSR_BLOCK"), *life_text = getenv("KVMSR_LIFE");
	char path[64];
	int number;

	if (tried || !text || sscanf(text, "%d:%d", &controller, &number) != 2)
		return;
	tried = 1;
	life = life_text ? atoi(life_text) : -1;
	kvmsr_block = block_in(number);
	if (kvmsr_block)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", controller, number);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	kvmsr_block = block_in(fd);
	if (fd >= 0)
		close(fd);
}

int kvmsr_controller_lives(void)
{
	struct pollfd end = { .fd = life };

	if (life >= 0 && poll(&end, 1, 0) >= 0 && !(end.revents & POLLNVAL))
		return !(end.revents & (POLLHUP | POLLERR));
	return !kill(controller, 0) || errno != ESRCH;
}
