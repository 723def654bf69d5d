/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter that the backend runs in: one of our own, or if the program is itself a Python,
 * the program's.
 *
 * Python's library is loaded when the program opens /dev/kvm for the first time. The interpreter
 * gets the paths of the kvmsr that has started the program, and leaves the program's signal
 * handlers, streams, locale and environment alone (PEP 587, isolated configuration).
 *
 * This file is compiled once for all versions of Python. PEP 587's functions are not in the limited
 * API, because the configuration's members differ from version to version. Here no member is touched:
 * Python's own functions fill it in.
 */
#define _GNU_SOURCE
#define Py_LIMITED_API 0x030b0000 /* 3.11 */
#include <Python.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "soft.h"

#define SETTINGS "KVMSR_SOFT"

/* PyConfig: some 500 bytes in Python 3.13. */
struct configuration {
	_Alignas(16) char bytes[8192];
};

/* PyStatus, as it is since Python 3.8 (Include/cpython/initconfig.h). */
struct status {
	int kind;
	const char *function, *message;
	int exit_code;
};

struct soft_calls soft_calls;

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static int started; /* 1: it has; negative: why it could not */
static int embedded; /* the interpreter is our own */

/* The first lines of the environment variable; kvmsr.attach.soft writes it. */
static char *path_of_library, *executable, *version, *notes;

static __attribute__((constructor)) void read_settings(void)
{
	const char *found = getenv(SETTINGS);
	char **lines[] = { &path_of_library, &executable, &version, &notes };
	char *rest = found ? strdup(found) : NULL;

	soft_calls.settings = rest ? strdup(rest) : NULL;
	for (unsigned i = 0; i < sizeof(lines) / sizeof(*lines); i++)
		*lines[i] = rest ? strsep(&rest, "\n") : NULL;
}

/* Tell the controller; it has a file for that. */
static void note(const char *what, const char *why)
{
	int fd = notes ? open(notes, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;

	if (fd < 0)
		return;
	dprintf(fd, "%s: %s\n", what, why);
	close(fd);
}

/*
 * Python's functions. They are looked up once: after fork(), the loader might wait for a lock that no
 * thread holds any more.
 */
#define FUNCTIONS(X)                                                                \
	X(int, Py_IsInitialized, (void))                                            \
	X(const char *, Py_GetVersion, (void))                                      \
	X(void, PyConfig_InitIsolatedConfig, (struct configuration *))              \
	X(struct status, PyConfig_SetBytesArgv,                                     \
	  (struct configuration *, Py_ssize_t, char *const *))                      \
	X(struct status, Py_InitializeFromConfig, (const struct configuration *))   \
	X(void, PyConfig_Clear, (struct configuration *))                           \
	X(int, PyStatus_Exception, (struct status))                                 \
	X(int, PyRun_SimpleStringFlags, (const char *, void *))                     \
	X(PyThreadState *, PyEval_SaveThread, (void))                               \
	X(PyGILState_STATE, PyGILState_Ensure, (void))                              \
	X(void, PyGILState_Release, (PyGILState_STATE))                             \
	X(void, PyOS_BeforeFork, (void))                                            \
	X(void, PyOS_AfterFork_Parent, (void))                                      \
	X(void, PyOS_AfterFork_Child, (void))

#define MEMBER(result, name, parameters) result(*name) parameters;
static struct {
	FUNCTIONS(MEMBER)
} py;

static __attribute__((format(printf, 1, 2))) int fail(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(soft_calls.failure, sizeof(soft_calls.failure), format, list);
	va_end(list);
	return 0;
}

/* Look up the functions, in the program or in the library. Return whether they are there. */
static int find_functions(void)
{
	void *where = RTLD_DEFAULT;

	if (!dlsym(where, "Py_IsInitialized")) {
		where = dlopen(path_of_library, RTLD_NOW | RTLD_GLOBAL);
		if (!where)
			return fail("%s", dlerror());
	}
#define LOOK_UP(result, name, parameters)                   \
	py.name = (result(*) parameters)dlsym(where, #name); \
	if (!py.name)                                       \
		return fail("its Python has no " #name);
	FUNCTIONS(LOOK_UP)
	return 1;
}

/* Make an interpreter; this thread has its lock then. Return whether there is one. */
static int embed(void)
{
	struct configuration config = { 0 };

	py.PyConfig_InitIsolatedConfig(&config);
	/* The program's own path is where Python looks for its modules from, as from a shell's argv[0]. */
	struct status status = py.PyConfig_SetBytesArgv(&config, 1, &executable);

	if (!py.PyStatus_Exception(status))
		status = py.Py_InitializeFromConfig(&config);
	py.PyConfig_Clear(&config);
	if (!py.PyStatus_Exception(status))
		return 1;
	return fail("Python says: %s", status.message ? status.message : "nothing");
}

/* Have Python fill in the calls. This thread has the interpreter's lock. */
static void import(void)
{
	static const char form[] =
		"exec('''\n"
		"import sys, ctypes\n"
		"place, own = %#lx, %s\n"
		"try:\n"
		"    text = ctypes.c_char_p.from_address(place).value.decode('utf-8', 'surrogateescape')\n"
		"    _, _, _, notes, profile, *paths = text.split(chr(10))\n"
		"    sys.path[:] = dict.fromkeys(paths + sys.path if own else sys.path + paths)\n"
		"    from kvmsr.backend.soft import serving\n"
		"    serving.begin(place, profile, notes, handles_signals=not own)\n"
		"except BaseException as error:\n"
		"    said = f'{type(error).__name__}: {error}'.encode()[:500]\n"
		"    ctypes.memmove(place + ctypes.sizeof(ctypes.c_void_p), said, len(said))\n"
		"''', {})\n";
	char text[sizeof(form) + 64];

	snprintf(text, sizeof(text), form, (unsigned long)(uintptr_t)&soft_calls,
		 embedded ? "True" : "False");
	if (py.PyRun_SimpleStringFlags(text, NULL) && !*soft_calls.failure)
		fail("Python cannot load kvmsr");
}

/* Find the interpreter, or make it, and prepare it. Return whether that has been done. */
static int prepare(void)
{
	if (!find_functions())
		return 0;
	const char *found = py.Py_GetVersion();
	size_t length = strlen(version);

	if (strncmp(found, version, length) || found[length] != '.')
		return fail("the VMM has a Python of its own, %.*s, and kvmsr runs in %s: install it there",
			    (int)strcspn(found, " "), found, version);
	embedded = !py.Py_IsInitialized();
	if (embedded) {
		if (!embed())
			return 0;
		import();
		py.PyEval_SaveThread();
	} else {
		PyGILState_STATE state = py.PyGILState_Ensure();

		import();
		py.PyGILState_Release(state);
	}
	return !*soft_calls.failure;
}

/* Have Python ready; signals are held back. Return 0 or a negative errno, of which the controller knows the cause. */
int soft_start(void)
{
	if (__atomic_load_n(&started, __ATOMIC_ACQUIRE) > 0)
		return 0;
	if (!notes)
		return -ENODEV;
	pthread_mutex_lock(&starting);
	if (!started) {
		int good = prepare();

		if (!good)
			note("the soft backend did not start", soft_calls.failure);
		__atomic_store_n(&started, good ? 1 : -ENODEV, __ATOMIC_RELEASE);
	}
	int result = started < 0 ? started : 0;

	pthread_mutex_unlock(&starting);
	return result;
}

/*
 * fork(2). Our own interpreter has to be told. A Python tells its interpreter itself, and may hold that
 * one's lock now.
 */
static struct {
	PyGILState_STATE state;
	uint64_t before;
	int concerned, told;
} at_fork;

void soft_python_before_fork(void)
{
	if (__atomic_load_n(&started, __ATOMIC_ACQUIRE) > 0 && !embedded)
		return;
	uint64_t before = soft_hold();

	pthread_mutex_lock(&starting);
	at_fork.before = before;
	at_fork.concerned = 1;
	at_fork.told = started > 0;
	if (at_fork.told) {
		at_fork.state = py.PyGILState_Ensure();
		py.PyOS_BeforeFork();
	}
}

static void resume(void (*tell)(void))
{
	if (!at_fork.concerned)
		return;
	uint64_t before = at_fork.before;

	at_fork.concerned = 0;
	if (at_fork.told) {
		tell();
		py.PyGILState_Release(at_fork.state);
	}
	pthread_mutex_unlock(&starting);
	soft_let_go(before);
}

void soft_python_in_parent(void)
{
	resume(py.PyOS_AfterFork_Parent);
}

void soft_python_in_child(void)
{
	resume(py.PyOS_AfterFork_Child);
}
