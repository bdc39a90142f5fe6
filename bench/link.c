/* link.c -- a network cable that is as slow as it is asked to be, for measurements where the kernel has no netem.
 *
 *     link NAMESPACE ADDRESS NAMESPACE ADDRESS        such as: link a 10.78.0.1/24 b 10.78.0.2/24
 *
 * Makes a TUN device `cable` in each of two network namespaces, which must exist, and carries packets between them. In each
 * direction a packet leaves when those before it and its own bits have left, at so many megabits per second, and arrives so
 * many microseconds later. A queue that is full makes the sender wait: nothing is lost. Each line of standard input,
 * "MICROSECONDS MEGABITS", sets both, and is answered by "ready"; at its end the program ends. Linux, as root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 60000, PLACES = 512 };

typedef struct {
    int64_t due; /* nanoseconds of the monotonic clock */
    ssize_t size;
    char bytes[MTU + 64];
} packet;

static atomic_int_fast64_t latency; /* ns */
static _Atomic double ns_per_byte;

/* One direction: a thread reads packets from `from`, and another writes them to `to` when they are due. */
typedef struct {
    int from, to;
    packet *queue; /* (PLACES) */
    size_t begin, count;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} direction;

static void fail(const char *what) {
    fprintf(stderr, "link: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void sleep_until(int64_t due) {
    struct timespec t = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

static void run(const char *format, const char *space, const char *address) {
    char command[256];
    snprintf(command, sizeof command, format, space, address);
    if (system(command) != 0) {
        fprintf(stderr, "link: this failed: %s\n", command);
        exit(1);
    }
}

/* Returns the descriptor of a new TUN device in a namespace. */
static int open_device(const char *space, const char *address) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", space);
    int namespace = open(path, O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET) != 0) fail(path);
    close(namespace);
    int device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (device < 0) fail("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI, .ifr_name = "cable"};
    if (ioctl(device, TUNSETIFF, &request) != 0) fail("TUNSETIFF");
    run("ip address add %2$s dev cable", space, address);
    run("ip link set dev cable up mtu 60000 txqueuelen 1000", space, address);
    return device;
}

static void *reads(void *argument) {
    direction *d = argument;
    int64_t free_at = 0; /* when the wire is free again */
    for (;;) {
        pthread_mutex_lock(&d->lock);
        while (d->count == PLACES) pthread_cond_wait(&d->changed, &d->lock);
        packet *p = &d->queue[(d->begin + d->count) % PLACES];
        pthread_mutex_unlock(&d->lock);
        p->size = read(d->from, p->bytes, sizeof p->bytes);
        if (p->size <= 0) continue;
        int64_t at = now();
        if (free_at < at) free_at = at;
        free_at += (int64_t)((double)p->size * ns_per_byte);
        p->due = free_at + latency;
        pthread_mutex_lock(&d->lock);
        d->count++;
        pthread_cond_signal(&d->changed);
        pthread_mutex_unlock(&d->lock);
    }
    return NULL;
}

static void *writes(void *argument) {
    direction *d = argument;
    prctl(PR_SET_TIMERSLACK, 1UL); /* ns; the default of 50 us would be most of the latency */
    for (;;) {
        pthread_mutex_lock(&d->lock);
        while (d->count == 0) pthread_cond_wait(&d->changed, &d->lock);
        packet *p = &d->queue[d->begin];
        pthread_mutex_unlock(&d->lock);
        sleep_until(p->due);
        ssize_t written = write(d->to, p->bytes, (size_t)p->size);
        (void)written; /* TCP sends again what a device that is down did not take */
        pthread_mutex_lock(&d->lock);
        d->begin = (d->begin + 1) % PLACES;
        d->count--;
        pthread_cond_signal(&d->changed);
        pthread_mutex_unlock(&d->lock);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: link NAMESPACE ADDRESS NAMESPACE ADDRESS\n");
        return 2;
    }
    setpriority(PRIO_PROCESS, 0, -20); /* a cable does not wait for a processor */
    int device[2] = {open_device(argv[1], argv[2]), open_device(argv[3], argv[4])};
    static direction directions[2];
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        direction *d = &directions[i];
        *d = (direction){.from = device[i], .to = device[1 - i], .queue = malloc(PLACES * sizeof *d->queue)};
        if (!d->queue) fail("memory");
        pthread_mutex_init(&d->lock, NULL);
        pthread_cond_init(&d->changed, NULL);
        if (pthread_create(&thread, NULL, reads, d) || pthread_create(&thread, NULL, writes, d)) fail("threads");
    }
    double microseconds, megabits;
    while (scanf("%lf %lf", &microseconds, &megabits) == 2) {
        latency = (int64_t)(microseconds * 1e3);
        ns_per_byte = 8e3 / megabits;
        puts("ready");
        fflush(stdout);
    }
    return 0;
}
