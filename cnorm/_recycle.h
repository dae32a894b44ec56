/* Memory for large results: freed blocks are kept, within a bound, for the next result of their size.
 *
 * New memory of a few MB and more comes from the system page by page, and touching it for the first
 * time costs as much as a kernel. NumPy lets an array have an allocator of its own (NEP 49): a block
 * comes back here only when the last array that refers to it is gone.
 *
 * A block begins 41 lines, more than half a page, on from the array that it is for, modulo a page: where a result
 * is written just behind what is read, a processor takes one for the other and waits; at half a page, or as
 * far as a row is long, both would share the sets of the first cache; and few rows are a multiple of 41 lines.
 * The address of the memory that a block is part of lies just before it.
 */
#ifndef CNORM_RECYCLE_H
#define CNORM_RECYCLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <numpy/arrayobject.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { RECYCLE_SLOTS = 32, RECYCLE_LEAST = 1 << 19 };

static struct { void *block; size_t size; } recycle_kept[RECYCLE_SLOTS]; /* oldest first */
static int recycle_count = 0;
static size_t recycle_bytes = 0, recycle_limit = (size_t)256 << 20;
static atomic_flag recycle_busy = ATOMIC_FLAG_INIT;

static void recycle_lock(void) {
    while (atomic_flag_test_and_set_explicit(&recycle_busy, memory_order_acquire)) {}
}
static void recycle_unlock(void) { atomic_flag_clear_explicit(&recycle_busy, memory_order_release); }

enum { PAGE = 4096, LINE = 64, BESIDE = 41 * LINE, MORE = PAGE + LINE, LARGE = 1 << 22 };

static _Thread_local uintptr_t recycle_read; /* the array that the next block is for */

static void *recycle_block(void *memory) {
    if (!memory) return NULL;
    const uintptr_t start = (uintptr_t)memory + LINE, place = (recycle_read + BESIDE) / LINE * LINE;
    void *block = (void *)(start + (place - start) % PAGE);
    ((void **)block)[-1] = memory;
    return block;
}
static void *recycle_memory(void *block) { return block ? ((void **)block)[-1] : NULL; }

/* Only memory that free() and realloc() take. */
static void *recycle_new(size_t size) {
    if (size > SIZE_MAX - MORE) return NULL;
#if defined(_WIN32)
    return recycle_block(malloc(size + MORE));
#else
    void *memory = NULL;
    if (posix_memalign(&memory, PAGE, size + MORE)) return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE) /* as NumPy does for its own; only a hint */
    if (size >= LARGE) madvise(memory, (size + MORE) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
    return recycle_block(memory);
#endif
}

static void *recycle_remove(int i) {
    void *block = recycle_kept[i].block;
    recycle_bytes -= recycle_kept[i].size;
    --recycle_count;
    memmove(recycle_kept + i, recycle_kept + i + 1, (recycle_count - i) * sizeof(recycle_kept[0]));
    return block;
}

static void *recycle_malloc(void *context, size_t size) {
    void *block = NULL;
    (void)context;
    if (size >= RECYCLE_LEAST) {
        recycle_lock();
        for (int i = recycle_count - 1; i >= 0 && !block; --i)
            if (recycle_kept[i].size == size) block = recycle_remove(i);
        recycle_unlock();
    }
    return block ? recycle_block(recycle_memory(block)) : recycle_new(size);
}

static void *recycle_calloc(void *context, size_t count, size_t size) {
    void *block = size && count > SIZE_MAX / size ? NULL : recycle_new(count * size);
    (void)context;
    return block ? memset(block, 0, count * size) : NULL;
}

static void *recycle_realloc(void *context, void *block, size_t size) {
    (void)context;
    if (!block) return recycle_new(size);
    char *memory = recycle_memory(block);
    const ptrdiff_t into = (char *)block - memory; /* what is there stays as far in */
    if (size > SIZE_MAX - MORE || !(memory = realloc(memory, size + MORE))) return NULL;
    block = memory + into;
    ((void **)block)[-1] = memory;
    return block;
}

/* Free the oldest blocks until what is kept, and `more`, fit the bound. */
static void recycle_shrink(size_t more) {
    for (;;) {
        void *block = NULL;
        recycle_lock();
        if (recycle_count && (recycle_bytes + more > recycle_limit || recycle_count == RECYCLE_SLOTS))
            block = recycle_remove(0);
        recycle_unlock();
        if (!block) return;
        free(recycle_memory(block));
    }
}

static void recycle_free(void *context, void *block, size_t size) {
    (void)context;
    if (block && size >= RECYCLE_LEAST && size <= recycle_limit) {
        recycle_shrink(size);
        recycle_lock();
        if (recycle_count < RECYCLE_SLOTS && recycle_bytes + size <= recycle_limit) {
            recycle_kept[recycle_count].block = block;
            recycle_kept[recycle_count++].size = size;
            recycle_bytes += size;
            block = NULL;
        }
        recycle_unlock();
    }
    free(recycle_memory(block));
}

static void recycle_set_limit(size_t limit) {
    recycle_lock();
    recycle_limit = limit;
    recycle_unlock();
    recycle_shrink(0);
}

static void recycle_empty(void) {
    const size_t limit = recycle_limit;
    recycle_set_limit(0);
    recycle_set_limit(limit);
}

/* In a forked child: another thread may have held the lock when the process was copied. */
static void recycle_forked(void) { recycle_unlock(); }

static PyDataMem_Handler recycle_handler = {
    "cnorm_recycle", 1,
    {NULL, recycle_malloc, recycle_calloc, recycle_realloc, recycle_free},
};

/* A new array like another, of recycled memory. */
static PyObject *recycle_like(PyArrayObject *like, NPY_ORDER order) {
    static PyObject *capsule = NULL;
    PyObject *before, *array, *used;
    if (!capsule && !(capsule = PyCapsule_New(&recycle_handler, "mem_handler", NULL))) return NULL;
    if (!(before = PyDataMem_SetHandler(capsule))) return NULL;
    recycle_read = (uintptr_t)PyArray_DATA(like);
    array = PyArray_NewLikeArray(like, order, NULL, 0);
    used = PyDataMem_SetHandler(before);
    Py_DECREF(before);
    if (!used) {
        Py_XDECREF(array);
        return NULL;
    }
    Py_DECREF(used);
    return array;
}

#endif
