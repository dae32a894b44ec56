/* What is known of the machine: the caches that the schedule is computed from. `cnorm/_machine.py` asks the
 * operating system, and sets them when a build is loaded. */
#ifndef CNORM_MACHINE_H
#define CNORM_MACHINE_H

#include <stddef.h>

typedef struct {
    ptrdiff_t l1, l2, l3;       /* bytes: of a core, of a core, shared */
    ptrdiff_t rows_from_memory; /* bytes of rows that one pass takes where they come from memory */
} Machine;

static Machine MACHINE = {32 << 10, 1 << 20, 32 << 20, 1 << 11};

#endif
