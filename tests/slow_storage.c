/* Slow storage for a Samba node, by LD_PRELOAD: while the file named by SLOW_STORAGE exists, every read and write of more
 * than 16 KiB takes as many milliseconds longer as the file says. Smaller ones are Samba's own databases, mostly. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

static void wait_for_storage(size_t count)
{
	const char *path = getenv("SLOW_STORAGE");
	long ms = 0;
	FILE *file;

	if (count <= 16384 || path == NULL || (file = fopen(path, "re")) == NULL)
		return;
	if (fscanf(file, "%ld", &ms) == 1 && ms > 0) {
		struct timespec wait = { ms / 1000, ms % 1000 * 1000000 };
		nanosleep(&wait, NULL);
	}
	fclose(file);
}

/* Which of the two names a program uses depends on how it was built. */
#define SLOW(name, data_type, off_type)                                                \
	ssize_t name(int fd, data_type data, size_t count, off_type at)                \
	{                                                                              \
		ssize_t (*next)(int, data_type, size_t, off_type);                     \
                                                                                       \
		next = dlsym(RTLD_NEXT, #name);                                        \
		wait_for_storage(count);                                               \
		return next(fd, data, count, at);                                      \
	}

SLOW(pread, void *, off_t)
SLOW(pread64, void *, off64_t)
SLOW(pwrite, const void *, off_t)
SLOW(pwrite64, const void *, off64_t)
