/* SPDX-License-Identifier: Apache-2.0 */
/* The device file: a character device that everybody may read and write. */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE /* it would define open and openat here */
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "soft.h"

enum { MAJOR = 10, MINOR = 232 }; /* admin-guide/devices.txt */

static int (*real_open)(const char *, int, ...), (*real_openat)(int, const char *, int, ...);
static int (*real_access)(const char *, int), (*real_faccessat)(int, const char *, int, int);

static __attribute__((constructor)) void find_real(void)
{
	real_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	real_openat = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat");
	real_access = (int (*)(const char *, int))dlsym(RTLD_NEXT, "access");
	real_faccessat = (int (*)(int, const char *, int, int))dlsym(RTLD_NEXT, "faccessat");
}

/* Another library's constructor may call them before ours has run. */
#define REAL(name) (real_##name ? real_##name : (find_real(), real_##name))

/*
 * Is PATH that of the device? There may be "//", "/./" and "/../" in it; symbolic links and relative
 * paths are not followed.
 */
static int is_device(const char *path)
{
	char plain[sizeof(KVM_DEVICE)] = "";
	size_t length = 0;

	if (!path || *path != '/')
		return 0;
	while (*path) {
		path += strspn(path, "/");
		size_t part = strcspn(path, "/");

		if (part == 2 && !strncmp(path, "..", 2)) {
			while (length && plain[--length] != '/')
				;
		} else if (part && !(part == 1 && *path == '.')) {
			if (length + 1 + part >= sizeof(plain))
				return 0;
			plain[length++] = '/';
			memcpy(plain + length, path, part);
			length += part;
		}
		plain[length] = 0;
		path += part;
	}
	return !strcmp(plain, KVM_DEVICE);
}

static int fail(int error)
{
	errno = error;
	return -1;
}

/* open(2) */

static int open_device(int flags)
{
	if (flags & O_DIRECTORY)
		return fail(ENOTDIR);
	if ((flags & O_CREAT) && (flags & O_EXCL))
		return fail(EEXIST);
	int before = errno;
	uint64_t blocked = soft_hold();
	long fd = soft_start();

	if (!fd)
		fd = soft_calls.open();
	if (fd >= 0)
		fd = soft_add(fd, SOFT_SYSTEM);
	soft_let_go(blocked);
	if (fd < 0)
		return fail(-fd);
	if (!(flags & O_CLOEXEC))
		fcntl(fd, F_SETFD, 0);
	errno = before;
	return fd;
}

static mode_t mode_of(int flags, va_list list)
{
	return flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

PUBLIC int open(const char *path, int flags, ...)
{
	va_list list;

	va_start(list, flags);
	mode_t mode = mode_of(flags, list);

	va_end(list);
	return is_device(path) ? open_device(flags) : REAL(open)(path, flags, mode);
}

PUBLIC int openat(int folder, const char *path, int flags, ...)
{
	va_list list;

	va_start(list, flags);
	mode_t mode = mode_of(flags, list);

	va_end(list);
	return is_device(path) ? open_device(flags) : REAL(openat)(folder, path, flags, mode);
}

/* Programs that were built with _FORTIFY_SOURCE call __open_2 and its like, which create no file. */
ALSO(open, open64);
ALSO(open, __open_2);
ALSO(open, __open64_2);
ALSO(openat, openat64);
ALSO(openat, __openat_2);
ALSO(openat, __openat64_2);

/* access(2) */

static int access_device(int mode)
{
	return mode & X_OK ? fail(EACCES) : 0;
}

PUBLIC int access(const char *path, int mode)
{
	return is_device(path) ? access_device(mode) : REAL(access)(path, mode);
}

PUBLIC int faccessat(int folder, const char *path, int mode, int flags)
{
	return is_device(path) ? access_device(mode) : REAL(faccessat)(folder, path, mode, flags);
}

/* stat(2). The system calls: which functions the C library has depends on its version. */

static int is_open_device(int fd)
{
	enum soft_kind kind;
	int before = errno, is = soft_is_ours(fd, &kind) && kind == SOFT_SYSTEM;

	errno = before;
	return is;
}

/* Do a folder's descriptor and a path name the device? */
static int names_device(int folder, const char *path, int flags)
{
	return is_device(path) ||
	       (path && !*path && flags & AT_EMPTY_PATH && is_open_device(folder));
}

int soft_fstatat(int folder, const char *path, struct stat *found, int flags)
{
	if (!names_device(folder, path, flags))
		return syscall(SYS_newfstatat, folder, path, found, flags);
	*found = (struct stat){
		.st_mode = S_IFCHR | 0666, .st_nlink = 1, .st_rdev = makedev(MAJOR, MINOR),
		.st_blksize = 4096, .st_ino = 1,
	};
	return 0;
}

int soft_statx(int folder, const char *path, int flags, unsigned int mask, struct statx *found)
{
	if (!names_device(folder, path, flags))
		return syscall(SYS_statx, folder, path, flags, mask, found);
	*found = (struct statx){
		.stx_mask = STATX_BASIC_STATS, .stx_mode = S_IFCHR | 0666, .stx_nlink = 1,
		.stx_blksize = 4096, .stx_ino = 1, .stx_rdev_major = MAJOR, .stx_rdev_minor = MINOR,
	};
	return 0;
}

int soft_fstat(int fd, struct stat *found)
{
	return soft_fstatat(fd, "", found, AT_EMPTY_PATH);
}

int soft_stat(const char *path, struct stat *found)
{
	return soft_fstatat(AT_FDCWD, path, found, 0);
}

int soft_lstat(const char *path, struct stat *found)
{
	return soft_fstatat(AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW);
}

/* The C library's functions before 2.33; the first argument is the structure's version. */

int soft_xstat(int version, const char *path, struct stat *found)
{
	(void)version;
	return soft_stat(path, found);
}

int soft_lxstat(int version, const char *path, struct stat *found)
{
	(void)version;
	return soft_lstat(path, found);
}

int soft_fxstat(int version, int fd, struct stat *found)
{
	(void)version;
	return soft_fstat(fd, found);
}

int soft_fxstatat(int version, int folder, const char *path, struct stat *found, int flags)
{
	(void)version;
	return soft_fstatat(folder, path, found, flags);
}

ALSO(soft_fstatat, fstatat);
ALSO(soft_fstatat, fstatat64);
ALSO(soft_fstat, fstat);
ALSO(soft_fstat, fstat64);
ALSO(soft_stat, stat);
ALSO(soft_stat, stat64);
ALSO(soft_lstat, lstat);
ALSO(soft_lstat, lstat64);
ALSO(soft_statx, statx);
ALSO(soft_xstat, __xstat);
ALSO(soft_xstat, __xstat64);
ALSO(soft_lxstat, __lxstat);
ALSO(soft_lxstat, __lxstat64);
ALSO(soft_fxstat, __fxstat);
ALSO(soft_fxstat, __fxstat64);
ALSO(soft_fxstatat, __fxstatat);
ALSO(soft_fxstatat, __fxstatat64);
