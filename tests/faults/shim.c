/* Fails the FAULT_N-th call of FAULT_CALL with the error FAULT_ERRNO, and says so by making the file FAULT_MARK. For LD_PRELOAD.
   A write that fails has written half.
   Memory that is no file's is not failed: Rust asks for some before main(), and ulimit -v is the test for the rest. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call) {
    static int seen;
    const char *which = getenv("FAULT_CALL");
    if (!which || strcmp(which, call) || __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED) != atoi(getenv("FAULT_N"))) return 0;
    int mark = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_MARK"), O_CREAT | O_WRONLY, 0600);
    if (mark >= 0) syscall(SYS_close, mark);
    errno = atoi(getenv("FAULT_ERRNO"));
    return 1;
}

#define REAL(type, name) ((type)dlsym(RTLD_NEXT, name))

static int mode_of(int flags, va_list args) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(args, int) : 0; }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list args;                                                                                                  \
        va_start(args, flags);                                                                                         \
        int mode = mode_of(flags, args);                                                                               \
        va_end(args);                                                                                                  \
        return fails("open") ? -1 : REAL(int (*)(const char *, int, ...), #name)(path, flags, mode);                   \
    }
OPEN(open)
OPEN(open64)

#define MMAP(name)                                                                                                     \
    void *name(void *at, size_t n, int prot, int flags, int fd, off_t offset) {                                        \
        return fd >= 0 && fails("mmap") ? MAP_FAILED                                                                              \
                             : REAL(void *(*)(void *, size_t, int, int, int, off_t), #name)(at, n, prot, flags, fd, offset); \
    }
MMAP(mmap)
MMAP(mmap64)

ssize_t read(int fd, void *to, size_t n) { return fails("read") ? -1 : REAL(ssize_t (*)(int, void *, size_t), "read")(fd, to, n); }
ssize_t write(int fd, const void *from, size_t n) {
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t (*)(int, const void *, size_t), "write");
    if (!fails("write")) return real(fd, from, n);
    int error = errno;
    real(fd, from, n / 2);
    errno = error;
    return -1;
}
int fsync(int fd) { return fails("fsync") ? -1 : REAL(int (*)(int), "fsync")(fd); }
int fdatasync(int fd) { return fails("fdatasync") ? -1 : REAL(int (*)(int), "fdatasync")(fd); }
int flock(int fd, int how) { return fails("flock") ? -1 : REAL(int (*)(int, int), "flock")(fd, how); }
int ftruncate64(int fd, off64_t n) { return fails("ftruncate") ? -1 : REAL(int (*)(int, off64_t), "ftruncate64")(fd, n); }
int unlink(const char *path) { return fails("unlink") ? -1 : REAL(int (*)(const char *), "unlink")(path); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    return fails("link") ? -1 : REAL(int (*)(int, const char *, int, const char *, int), "linkat")(from_dir, from, to_dir, to, flags);
}
int rename(const char *from, const char *to) {
    return fails("rename") ? -1 : REAL(int (*)(const char *, const char *), "rename")(from, to);
}
