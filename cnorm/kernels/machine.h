/* The caches that the schedule is computed from. cnorm/_machine.py asks the operating system before the
 * first call that may use threads, and sets them (set_machine in kernels.pyx); tests set others. */
#ifndef CNORM_MACHINE_H
#define CNORM_MACHINE_H

#include <stddef.h>

typedef struct {
    ptrdiff_t l1, l2, l3; /* bytes of data cache: L1 and L2 of one core, L3 shared by all */
    int force;            /* a Strategy that executors take wherever it applies (tests), or 0 */
} Machine;

static Machine MACHINE = {32 << 10, 1 << 20, 32 << 20, 0};

#endif
