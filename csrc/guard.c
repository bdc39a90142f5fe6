/* guard.c -- mapped files that lose their pages. As in systemd's src/basic/sigbus.c, the handler maps zeros where the
 * pages were, and records that it did. */
#if defined(__linux__)
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#endif
#include "rnnlib.h"

#if defined(_WIN32)

int32_t rnn_guard_add(const void *memory, size_t size) {
    if (!memory) return RNN_E_NULL;
    return size ? RNN_OK : RNN_E_DIM;
}

void rnn_guard_remove(const void *memory) { (void)memory; }

int32_t rnn_guard_lost(const void *memory) {
    (void)memory;
    return 0;
}

#else

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SLOTS = 4096, CLAIMED = 1 }; /* ranges at most; `end` of a slot that is being filled */

static struct {
    atomic_uintptr_t begin, end; /* end: 0 when the slot is free */
    atomic_int lost;
} slots[SLOTS];
static atomic_uintptr_t page_size;
static struct sigaction previous;  /* until it is known, zeros: the system's default handling */
static atomic_uintptr_t passed_on; /* the thread whose fault went to `previous`, which may call on_bus again */

static void on_bus(int number, siginfo_t *info, void *context) {
    (void)context;
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < SLOTS && info->si_code > 0; i++) { /* 0 and less: sent by a process, without an address */
        uintptr_t end = atomic_load(&slots[i].end), begin = atomic_load(&slots[i].begin);
        /* A slot that was freed and reused in the meantime has another end, and does not cover this address. */
        if (at < begin || at >= end || atomic_load(&slots[i].end) != end) continue;
        uintptr_t page = at - at % atomic_load(&page_size);
        atomic_store(&slots[i].lost, 1);
        /* To the end, because the pages after a missing one are mostly missing too. mmap is a bare system call here, so it
         * is safe in a handler. */
        void *zeros = mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (zeros == MAP_FAILED) break;
        errno = saved;
        return; /* and the read is tried again */
    }
    /* Not ours: as if this handler had never been. */
    struct sigaction by_default = {.sa_handler = SIG_DFL};
    uintptr_t thread = (uintptr_t)pthread_self();
    sigaction(SIGBUS, atomic_exchange(&passed_on, thread) == thread ? &by_default : &previous, NULL);
    if (info->si_code <= 0) raise(number);
    errno = saved;
}

int32_t rnn_guard_add(const void *memory, size_t size) {
    if (!memory) return RNN_E_NULL;
    if (size == 0 || size > UINTPTR_MAX - (uintptr_t)memory) return RNN_E_DIM;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if ((uintptr_t)memory % page) return RNN_E_ARG;
    atomic_store(&page_size, page);
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK}, before;
    ours.sa_sigaction = on_bus;
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, &ours, &before)) return RNN_E_ARG;
    if (!(before.sa_flags & SA_SIGINFO) || before.sa_sigaction != on_bus) {
        previous = before;
        atomic_store(&passed_on, 0);
    }
    for (int i = 0; i < SLOTS; i++) {
        uintptr_t is_free = 0;
        if (!atomic_compare_exchange_strong(&slots[i].end, &is_free, CLAIMED)) continue;
        atomic_store(&slots[i].lost, 0);
        atomic_store(&slots[i].begin, (uintptr_t)memory);
        atomic_store(&slots[i].end, (uintptr_t)memory + size); /* last: from here on the handler sees it */
        return RNN_OK;
    }
    return RNN_E_NOMEM;
}

static int find(const void *memory) {
    for (int i = 0; i < SLOTS; i++) {
        if (atomic_load(&slots[i].end) > CLAIMED && atomic_load(&slots[i].begin) == (uintptr_t)memory) return i;
    }
    return -1;
}

void rnn_guard_remove(const void *memory) {
    int i = find(memory);
    if (i >= 0) atomic_store(&slots[i].end, 0);
}

int32_t rnn_guard_lost(const void *memory) {
    int i = find(memory);
    return i >= 0 && atomic_load(&slots[i].lost);
}

#endif
