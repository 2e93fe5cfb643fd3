/* Shifts the wall clock that Python reads; everybody else in the process sees the true one.
 *
 * Only calls from the interpreter's own code are shifted: a C++ library that computes a deadline
 * from a shifted clock and hands it to the kernel, whose clock is true, would wait for an hour,
 * which no wrong clock of a real machine does. CHAOS_CLOCK names a file of one int64: nanoseconds
 * that the clock is ahead. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead_ns;
static uintptr_t first, end; /* code of the interpreter */
static uintptr_t anchor;

static int find(struct dl_phdr_info *info, size_t size, void *data) {
  (void)size, (void)data;
  uintptr_t low = UINTPTR_MAX, high = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (start < low) low = start;
    if (start + info->dlpi_phdr[i].p_memsz > high) high = start + info->dlpi_phdr[i].p_memsz;
  }
  if (anchor < low || anchor >= high) return 0;
  first = low, end = high;
  return 1;
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CHAOS_CLOCK");
  anchor = (uintptr_t)dlsym(RTLD_DEFAULT, "Py_IsInitialized");
  if (!path || !anchor) return;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (page == MAP_FAILED) return;
  dl_iterate_phdr(find, NULL);
  ahead_ns = page;
}

static int64_t shift_for(void *caller) {
  uintptr_t from = (uintptr_t)caller;
  return ahead_ns && from >= first && from < end ? *ahead_ns : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*true_clock)(clockid_t, struct timespec *);
  if (!true_clock) true_clock = dlsym(RTLD_NEXT, "clock_gettime");
  int result = true_clock(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t shift = shift_for(__builtin_return_address(0));
    if (shift) {
      int64_t ns = now->tv_sec * 1000000000LL + now->tv_nsec + shift;
      now->tv_sec = ns / 1000000000LL;
      now->tv_nsec = ns % 1000000000LL;
    }
  }
  return result;
}

time_t time(time_t *result) {
  struct timespec now;
  static int (*true_clock)(clockid_t, struct timespec *);
  if (!true_clock) true_clock = dlsym(RTLD_NEXT, "clock_gettime");
  true_clock(CLOCK_REALTIME, &now);
  time_t seconds = now.tv_sec + shift_for(__builtin_return_address(0)) / 1000000000LL;
  if (result) *result = seconds;
  return seconds;
}
