/* test_refusal.c -- where the system refuses the tile registers, the library takes other kernels. Linux on x86-64 only.
 *
 * Linked with a dispatch.c that takes it for granted that the processor has AMX (RNN_ASSUME_TILES), so that what decides is
 * the system's answer. A filter refuses, as that of a container may; a processor without AMX is refused by Linux itself. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "rnnlib.h"

int setenv(const char *name, const char *value, int overwrite);

int main(void) {
    struct sock_filter refuse[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1), /* EPERM */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof refuse / sizeof *refuse, .filter = refuse};
    setenv("RNN_ISA", "amx", 1);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        puts("the filter itself is refused: nothing was tested");
        return 0;
    }
    const char *taken = rnn_kernel_name();
    printf("AMX refused: %s\n", taken);
    return strcmp(taken, "amx") == 0;
}
