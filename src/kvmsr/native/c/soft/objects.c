/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which descriptor is which of KVM's objects, and when an object is gone.
 *
 * As in the kernel, that is when no descriptor refers to it any more. Descriptors are duplicated and
 * closed in many ways. So none is followed: who still refers to an object is looked up in
 * /proc/self/fd, when one of the objects' descriptors is closed, and when there are many more
 * objects than there were.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "soft.h"

enum { BUCKETS = 256, FEW = 16, CERTAIN = 2 };

static pthread_mutex_t sweeping = PTHREAD_MUTEX_INITIALIZER; /* taken before the next */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER; /* what follows */
static struct soft_object *buckets[BUCKETS];
static uint32_t count, enough = FEW;
static dev_t device; /* of all memory files */

/* Return the inode of a memory file; 0 if FD is something else. */
static uint64_t inode_of(int fd)
{
	struct stat found;

	/* The system call: fstat(2) itself is interposed. */
	if (syscall(SYS_fstat, fd, &found) || !S_ISREG(found.st_mode) || found.st_dev != device)
		return 0;
	return found.st_ino;
}

/* Return the object of an inode, or NULL. The lock is held. */
static struct soft_object *find(uint64_t inode)
{
	struct soft_object *object = buckets[inode % BUCKETS];

	while (object && object->inode != inode)
		object = object->next;
	return object;
}

/* Return the object that FD refers to, with one more user; NULL if it refers to none. */
struct soft_object *soft_take(int fd)
{
	if (!__atomic_load_n(&count, __ATOMIC_ACQUIRE))
		return NULL;
	uint64_t inode = inode_of(fd);

	if (!inode)
		return NULL;
	pthread_mutex_lock(&changing);
	struct soft_object *object = find(inode);

	if (object)
		object->users++;
	pthread_mutex_unlock(&changing);
	return object;
}

/* The thread has done with it. */
void soft_put(struct soft_object *object)
{
	pthread_mutex_lock(&changing);
	int last = !--object->users && object->missing;

	pthread_mutex_unlock(&changing);
	if (last)
		soft_sweep();
}

/* Return whether FD refers to an object, and store its kind. */
int soft_is_ours(int fd, enum soft_kind *kind)
{
	struct soft_object *object = soft_take(fd);

	if (!object)
		return 0;
	*kind = object->kind;
	soft_put(object);
	return 1;
}

/* FD refers to a new object. Return it, or a negative errno, and FD is closed. */
int soft_add(int fd, enum soft_kind kind)
{
	struct soft_object *object = calloc(1, sizeof(*object));
	struct stat found;

	if (!object || syscall(SYS_fstat, fd, &found)) {
		free(object);
		syscall(SYS_close, fd);
		return -ENOMEM;
	}
	object->inode = found.st_ino;
	object->kind = kind;
	object->pid = getpid();
	pthread_mutex_init(&object->busy, NULL);
	pthread_mutex_lock(&changing);
	device = found.st_dev;
	object->next = buckets[object->inode % BUCKETS];
	buckets[object->inode % BUCKETS] = object;
	int many = __atomic_add_fetch(&count, 1, __ATOMIC_RELEASE) > enough;

	pthread_mutex_unlock(&changing);
	if (many)
		soft_sweep();
	return fd;
}

/* Note all objects that a descriptor refers to. Return 0 if that cannot be found out. */
static int look(void)
{
	DIR *folder = opendir("/proc/self/fd");

	if (!folder)
		return 0;
	pthread_mutex_lock(&changing);
	for (int i = 0; i < BUCKETS; i++)
		for (struct soft_object *object = buckets[i]; object; object = object->next)
			object->missing++;
	pthread_mutex_unlock(&changing);
	for (struct dirent *entry; (entry = readdir(folder));) {
		uint64_t inode = entry->d_name[0] == '.' ? 0 : inode_of(atoi(entry->d_name));

		if (!inode)
			continue;
		pthread_mutex_lock(&changing);
		struct soft_object *object = find(inode);

		if (object)
			object->missing = 0;
		pthread_mutex_unlock(&changing);
	}
	closedir(folder);
	return 1;
}

/* Take the objects away that have been missing and have no user, and return them as a list. */
static struct soft_object *take_missing(void)
{
	struct soft_object *gone = NULL;
	pid_t pid = getpid();

	pthread_mutex_lock(&changing);
	for (int i = 0; i < BUCKETS; i++) {
		for (struct soft_object **at = &buckets[i]; *at;) {
			struct soft_object *object = *at;

			if (object->missing < CERTAIN || object->users || object->pid != pid) {
				at = &object->next;
				continue;
			}
			*at = object->next;
			object->next = gone;
			gone = object;
			count--;
		}
	}
	enough = 2 * count + FEW;
	pthread_mutex_unlock(&changing);
	return gone;
}

/*
 * Free the objects that no descriptor refers to; signals are held back. One that is looked for
 * while another thread moves its last descriptor may be missed: so each is looked for more than
 * once.
 */
void soft_sweep(void)
{
	pthread_mutex_lock(&sweeping);
	int known = 1;

	for (int i = 0; i < CERTAIN && known; i++)
		known = look();
	struct soft_object *gone = known ? take_missing() : NULL;

	pthread_mutex_unlock(&sweeping);
	while (gone) {
		struct soft_object *object = gone;

		gone = object->next;
		soft_calls.close(object->inode);
		pthread_mutex_destroy(&object->busy);
		free(object);
	}
}

/* fork(2): the locks must be free in the child. */
void soft_objects_before_fork(void)
{
	pthread_mutex_lock(&sweeping);
	pthread_mutex_lock(&changing);
}

void soft_objects_after_fork(void)
{
	pthread_mutex_unlock(&changing);
	pthread_mutex_unlock(&sweeping);
}
