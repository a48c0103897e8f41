/* Counts the calls of this process that change (or read) files under a folder, and strikes at one of them: SIGKILL,
   half a write and SIGKILL, or an errno, once or from there on. Loaded by LD_PRELOAD, idle until `torture_arm`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, NAME = 8, MAKE = 16, REMOVE = 32, CUT = 64, READ = 128 };
enum { WATCH = 0, KILL = 1, TEAR = 2, FAIL = 3 };

static struct {
    char folder[PATH_MAX];
    size_t length;
    int mask, action, error, lasting, trace;
    long at, count;
} armed;

/* Watch calls of the kinds in `mask` under `folder`; at the `at`-th do `action`. `trace` gets a line a call, or -1. */
void torture_arm(const char *folder, int mask, long at, int action, int error, int lasting, int trace) {
    snprintf(armed.folder, sizeof armed.folder, "%s", folder);
    armed.mask = mask, armed.at = at, armed.action = action, armed.error = error, armed.lasting = lasting;
    armed.trace = trace, armed.count = 0;
    armed.length = strlen(folder);
}

static void absolute(int directory, const char *path, char *out) {
    char link[64];
    ssize_t n;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    n = readlink(link, out, PATH_MAX / 2);
    if (n < 0) n = 0;
    snprintf(out + n, PATH_MAX - n, "/%s", path);
}

/* Whether this call fails (errno is set). `descriptor` is what a torn write goes to. */
static int strike(int kind, const char *name, const char *path, int descriptor, const void *data, size_t size) {
    long number;
    if (!armed.length || !(armed.mask & kind) || strncmp(path, armed.folder, armed.length)) return 0;
    number = __sync_add_and_fetch(&armed.count, 1);
    if (armed.trace >= 0) {
        char line[PATH_MAX + 64];
        int n = snprintf(line, sizeof line, "%d %s %s\n", kind, name, path);
        syscall(SYS_write, armed.trace, line, n);
    }
    if (armed.action == WATCH || number < armed.at || (number > armed.at && !armed.lasting)) return 0;
    if (armed.action == FAIL) {
        errno = armed.error;
        return 1;
    }
    if (armed.action == TEAR && data) syscall(SYS_write, descriptor, data, size / 2);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static int strike_path(int kind, const char *name, int directory, const char *path) {
    char whole[PATH_MAX];
    if (!armed.length || !path) return 0;
    absolute(directory, path, whole);
    return strike(kind, name, whole, -1, NULL, 0);
}

static int strike_descriptor(int kind, const char *name, int descriptor, const void *data, size_t size) {
    char link[64], whole[PATH_MAX];
    ssize_t n;
    if (!armed.length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    n = readlink(link, whole, sizeof whole - 1);
    if (n <= 0) return 0;
    whole[n] = 0;
    return strike(kind, name, whole, descriptor, data, size);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FORWARD(name) \
    static __typeof__(&name) real; \
    if (!real) real = REAL(name)

static int kind_of(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? OPEN : READ; }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        FORWARD(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        return strike_path(kind_of(flags), #name, AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        FORWARD(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest); \
        return strike_path(kind_of(flags), #name, directory, path) ? -1 : real(directory, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        FORWARD(name); \
        int kind = mode[0] == 'r' && !strchr(mode, '+') ? READ : OPEN; \
        return strike_path(kind, #name, AT_FDCWD, path) ? NULL : real(path, mode); \
    }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

ssize_t write(int descriptor, const void *data, size_t size) {
    FORWARD(write);
    return strike_descriptor(WRITE, "write", descriptor, data, size) ? -1 : real(descriptor, data, size);
}
ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    FORWARD(writev);
    const void *data = count ? parts[0].iov_base : NULL;
    size_t size = count ? parts[0].iov_len : 0;
    return strike_descriptor(WRITE, "writev", descriptor, data, size) ? -1 : real(descriptor, parts, count);
}
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
    FORWARD(pwrite);
    return strike_descriptor(WRITE, "pwrite", descriptor, NULL, 0) ? -1 : real(descriptor, data, size, at);
}
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    FORWARD(pwrite64);
    return strike_descriptor(WRITE, "pwrite64", descriptor, NULL, 0) ? -1 : real(descriptor, data, size, at);
}
int fsync(int descriptor) {
    FORWARD(fsync);
    return strike_descriptor(SYNC, "fsync", descriptor, NULL, 0) ? -1 : real(descriptor);
}
int fdatasync(int descriptor) {
    FORWARD(fdatasync);
    return strike_descriptor(SYNC, "fdatasync", descriptor, NULL, 0) ? -1 : real(descriptor);
}
int ftruncate(int descriptor, off_t size) {
    FORWARD(ftruncate);
    return strike_descriptor(CUT, "ftruncate", descriptor, NULL, 0) ? -1 : real(descriptor, size);
}
int ftruncate64(int descriptor, off64_t size) {
    FORWARD(ftruncate64);
    return strike_descriptor(CUT, "ftruncate64", descriptor, NULL, 0) ? -1 : real(descriptor, size);
}
int rename(const char *from, const char *to) {
    FORWARD(rename);
    return strike_path(NAME, "rename", AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat(int from_directory, const char *from, int directory, const char *to) {
    FORWARD(renameat);
    return strike_path(NAME, "renameat", directory, to) ? -1 : real(from_directory, from, directory, to);
}
int renameat2(int from_directory, const char *from, int directory, const char *to, unsigned flags) {
    FORWARD(renameat2);
    return strike_path(NAME, "renameat2", directory, to) ? -1 : real(from_directory, from, directory, to, flags);
}
int link(const char *from, const char *to) {
    FORWARD(link);
    return strike_path(NAME, "link", AT_FDCWD, to) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    FORWARD(mkdir);
    return strike_path(MAKE, "mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}
int mkdirat(int directory, const char *path, mode_t mode) {
    FORWARD(mkdirat);
    return strike_path(MAKE, "mkdirat", directory, path) ? -1 : real(directory, path, mode);
}
int unlink(const char *path) {
    FORWARD(unlink);
    return strike_path(REMOVE, "unlink", AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int directory, const char *path, int flags) {
    FORWARD(unlinkat);
    return strike_path(REMOVE, "unlinkat", directory, path) ? -1 : real(directory, path, flags);
}
int rmdir(const char *path) {
    FORWARD(rmdir);
    return strike_path(REMOVE, "rmdir", AT_FDCWD, path) ? -1 : real(path);
}
