// A disk that takes 200 ms to answer whatever is asked of a path that holds $SLOW_PATH. For LD_PRELOAD.
// It counts how often the process's first thread waited for it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int first_thread_waits;

int num_first_thread_waits(void) { return first_thread_waits; }

static void wait_for(const char* path) {
  const char* slow = getenv("SLOW_PATH");
  if (!slow || !path || !strstr(path, slow)) return;
  if (gettid() == getpid()) first_thread_waits++;
  usleep(200000);
}

static void wait_for_fd(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0) {
    path[length] = 0;
    wait_for(path);
  }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread(int fd, void* to, size_t count, off_t at) {
  wait_for_fd(fd);
  return REAL(pread)(fd, to, count, at);
}

ssize_t pread64(int fd, void* to, size_t count, off64_t at) {
  wait_for_fd(fd);
  return REAL(pread64)(fd, to, count, at);
}

ssize_t preadv(int fd, const struct iovec* to, int count, off_t at) {
  wait_for_fd(fd);
  return REAL(preadv)(fd, to, count, at);
}

ssize_t preadv64(int fd, const struct iovec* to, int count, off64_t at) {
  wait_for_fd(fd);
  return REAL(preadv64)(fd, to, count, at);
}

int stat(const char* restrict path, struct stat* restrict into) {
  wait_for(path);
  return REAL(stat)(path, into);
}

int stat64(const char* restrict path, struct stat64* restrict into) {
  wait_for(path);
  return REAL(stat64)(path, into);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  wait_for(path);
  return REAL(open64)(path, flags, mode);
}
