/* A pool of memory for results: freed blocks are kept, within a limit, for the next result of equal size.
 *
 * New memory of some MB comes from the operating system page by page, and the page faults of its first use take as long
 * as a kernel. For results of a few KB, malloc and NumPy's bookkeeping around it take as long as a norm. NumPy lets an
 * array have its own allocator (NEP 49), so a block returns here when the last array that refers to it is gone.
 *
 * Alignment: every block begins at a cache line. Blocks of 4 pages or more (OFFSET_MIN) get a page offset of 41 cache
 * lines (2624 bytes) relative to the input array. (1) If input and output have nearly equal low 12 address bits, loads
 * are held back by earlier stores (4K aliasing). (2) An offset of half a page, or of one row, maps both arrays to the
 * same L1 sets (set conflict). 41 lines is more than half a page and rarely a multiple of a row length.
 *
 * A block is part of an allocation, whose address is stored in the pointer just before the block.
 */
#ifndef CNORM_POOL_H
#define CNORM_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <numpy/arrayobject.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define NUMPY_TRACE_DOMAIN 389047 /* numpy.lib.tracemalloc_domain */

enum {
    POOL_SLOTS = 32,            /* free blocks of a size class */
    POOL_LARGE_MIN = 1 << 19,   /* bytes: smaller blocks are of the small class */
    POOL_SMALL_LIMIT = 1 << 22, /* bytes of all free small blocks */
};

/* The free blocks of one size class, the oldest first. Small and large blocks have slots of their own, so that many
 * small blocks do not displace the large ones, whose page faults the pool saves. */
typedef struct {
    struct { void *block; size_t size; } slots[POOL_SLOTS];
    int count;
    size_t bytes;
} PoolClass;

static PoolClass pool_small, pool_large;
static size_t pool_limit = (size_t)256 << 20; /* bytes of all free blocks */

#if defined(Py_GIL_DISABLED)
static atomic_flag pool_busy = ATOMIC_FLAG_INIT;
static void pool_lock(void) {
    while (atomic_flag_test_and_set_explicit(&pool_busy, memory_order_acquire)) {}
}
static void pool_unlock(void) { atomic_flag_clear_explicit(&pool_busy, memory_order_release); }
#else /* arrays are created and freed under the GIL */
static void pool_lock(void) {}
static void pool_unlock(void) {}
#endif

enum {
    PAGE = 4096,
    CACHE_LINE = 64,
    PAGE_OFFSET = 41 * CACHE_LINE, /* of a block, relative to its input */
    OFFSET_MIN = 4 * PAGE,         /* bytes of a block that gets the offset */
    OFFSET_ROOM = PAGE + CACHE_LINE,
    HUGE_PAGE_MIN = 1 << 22,       /* bytes of a block from which on huge pages are requested */
};

/* Bytes to allocate for a block: its size and what the alignment may take. */
static size_t pool_allocation_size(size_t size) {
    return size < OFFSET_MIN ? size + 2 * CACHE_LINE : size + OFFSET_ROOM;
}

/* The block within an allocation, placed for an input at address `input`. */
static void *pool_place(void *memory, size_t size, uintptr_t input) {
    if (!memory) return NULL;
    const uintptr_t start = ((uintptr_t)memory + sizeof(void *) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    const uintptr_t place = (input + PAGE_OFFSET) / CACHE_LINE * CACHE_LINE;
    void *block = (void *)(size < OFFSET_MIN ? start : start + (place - start) % PAGE);
    ((void **)block)[-1] = memory;
    return block;
}
static void *pool_allocation_of(void *block) { return block ? ((void **)block)[-1] : NULL; }

/* A new block. Its allocation must be one that free() and realloc() accept. */
static void *pool_new_block(size_t size, uintptr_t input) {
    if (size > SIZE_MAX - OFFSET_ROOM) return NULL;
    void *memory = NULL;
#if !defined(_WIN32)
    if (size >= OFFSET_MIN) {
        if (posix_memalign(&memory, PAGE, pool_allocation_size(size))) return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE) /* as NumPy does for its arrays; a hint */
        if (size >= HUGE_PAGE_MIN) madvise(memory, pool_allocation_size(size) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
        return pool_place(memory, size, input);
    }
#endif
    memory = malloc(pool_allocation_size(size));
    return pool_place(memory, size, input);
}

static PoolClass *pool_class_of(size_t size) { return size < POOL_LARGE_MIN ? &pool_small : &pool_large; }

static void *pool_remove(PoolClass *pool, int i) {
    void *block = pool->slots[i].block;
    pool->bytes -= pool->slots[i].size;
    if (i != --pool->count)
        memmove(pool->slots + i, pool->slots + i + 1, (pool->count - i) * sizeof(pool->slots[0]));
    return block;
}

/* A block of the pool, or a new one. */
static inline void *pool_take(size_t size, uintptr_t input) {
    PoolClass *pool = pool_class_of(size);
    void *block = NULL;
    pool_lock();
    for (int i = pool->count - 1; i >= 0 && !block; --i)
        if (pool->slots[i].size == size) block = pool_remove(pool, i);
    pool_unlock();
    return block ? pool_place(pool_allocation_of(block), size, input) : pool_new_block(size, input);
}

static _Thread_local uintptr_t pool_input; /* input of the result that NumPy is about to allocate */

static void *pool_malloc(void *context, size_t size) {
    (void)context;
    return pool_take(size, pool_input);
}

static void *pool_calloc(void *context, size_t count, size_t size) {
    void *block = size && count > SIZE_MAX / size ? NULL : pool_new_block(count * size, 0);
    (void)context;
    return block ? memset(block, 0, count * size) : NULL;
}

static void *pool_realloc(void *context, void *block, size_t size) {
    (void)context;
    if (!block) return pool_new_block(size, 0);
    char *memory = pool_allocation_of(block);
    /* realloc copies the block to this offset, too; volatile: GCC would subtract after it, and warn of that */
    const volatile size_t offset = (char *)block - memory;
    if (size > SIZE_MAX - OFFSET_ROOM || !(memory = realloc(memory, size + OFFSET_ROOM))) return NULL;
    block = memory + offset;
    ((void **)block)[-1] = memory;
    return block;
}

static size_t pool_bytes(void) { return pool_small.bytes + pool_large.bytes; }

/* Put a freed block into the pool, if it fits; returns whether it did. */
static inline int pool_put(void *block, size_t size) {
    PoolClass *pool = pool_class_of(size);
    pool_lock();
    const int fits = pool->count < POOL_SLOTS && pool_bytes() + size <= pool_limit
                     && pool_small.bytes + size * (pool == &pool_small) <= POOL_SMALL_LIMIT;
    if (fits) {
        pool->slots[pool->count].block = block;
        pool->slots[pool->count++].size = size;
        pool->bytes += size;
    }
    pool_unlock();
    return fits;
}

/* Free the oldest block of a class, or of the other class where this one is empty; returns whether there was one. */
static int pool_evict(PoolClass *pool) {
    void *block = NULL;
    pool_lock();
    if (!pool->count) pool = pool == &pool_small ? &pool_large : &pool_small;
    if (pool->count) block = pool_remove(pool, 0);
    pool_unlock();
    free(pool_allocation_of(block));
    return block != NULL;
}

/* Put a freed block into the pool in place of older ones, or free it if it is larger than the limit. */
static void pool_put_evicting(void *block, size_t size) {
    if (size <= pool_limit)
        while (pool_evict(pool_class_of(size)))
            if (pool_put(block, size)) return;
    free(pool_allocation_of(block));
}

static void pool_free(void *context, void *block, size_t size) {
    (void)context;
    if (block && !pool_put(block, size)) pool_put_evicting(block, size);
}

static void pool_set_limit(size_t limit) {
    pool_lock();
    pool_limit = limit;
    pool_unlock();
    while (pool_bytes() > limit && pool_evict(&pool_large)) {}
}

static void pool_clear(void) {
    const size_t limit = pool_limit;
    pool_set_limit(0);
    pool_set_limit(limit);
}

/* In a forked child: another thread may have held the lock when the process was copied. */
static void pool_after_fork(void) { pool_unlock(); }

static PyDataMem_Handler pool_handler = {
    "cnorm_pool", 1,
    {NULL, pool_malloc, pool_calloc, pool_realloc, pool_free},
};

/* Created by pool_init and never replaced, so that threads read it without a lock. */
static PyObject *pool_handler_capsule = NULL;

static int pool_init(void) {
    pool_handler_capsule = PyCapsule_New(&pool_handler, "mem_handler", NULL);
    return pool_handler_capsule ? 0 : -1;
}

/* A new C-contiguous array of `size` bytes, for an input at address `input`; steals the reference to `type`.
 *
 * PyArray_NewFromDescr under a handler set by PyDataMem_SetHandler would take twice as long: the handler is a context
 * variable that is set, looked up and set again. */
static PyObject *pool_array(PyArray_Descr *type, int ndim, npy_intp const *shape, size_t size, const void *input) {
    PyObject *array;
    void *block;
    if (!(block = pool_take(size, (uintptr_t)input))) {
        Py_DECREF(type);
        return PyErr_Format(PyExc_MemoryError, "cnorm could not allocate %zu bytes for an array", size);
    }
    array = PyArray_NewFromDescr(&PyArray_Type, type, ndim, shape, NULL, block, NPY_ARRAY_CARRAY, NULL);
    if (!array) {
        pool_free(NULL, block, size);
        return NULL;
    }
    Py_INCREF(pool_handler_capsule);
    ((PyArrayObject_fields *)array)->mem_handler = pool_handler_capsule;
    PyArray_ENABLEFLAGS((PyArrayObject *)array, NPY_ARRAY_OWNDATA);
    PyTraceMalloc_Track(NUMPY_TRACE_DOMAIN, (uintptr_t)block, size);
    return array;
}

/* A new array of the shape, dtype and memory order of `like`, its input. NumPy allocates arrays without elements, and
 * small ones that are not C-contiguous. */
static PyObject *pool_empty_like(PyArrayObject *like) {
    const size_t size = PyArray_NBYTES(like);
    PyObject *before, *array, *used;
    if (size && pool_limit && PyArray_IS_C_CONTIGUOUS(like)) {
        Py_INCREF(PyArray_DESCR(like));
        return pool_array(PyArray_DESCR(like), PyArray_NDIM(like), PyArray_DIMS(like), size, PyArray_DATA(like));
    }
    if (size < POOL_LARGE_MIN || !pool_limit) return PyArray_NewLikeArray(like, NPY_KEEPORDER, NULL, 0);
    if (!(before = PyDataMem_SetHandler(pool_handler_capsule))) return NULL;
    pool_input = (uintptr_t)PyArray_DATA(like);
    array = PyArray_NewLikeArray(like, NPY_KEEPORDER, NULL, 0);
    used = PyDataMem_SetHandler(before);
    Py_DECREF(before);
    if (!used) {
        Py_XDECREF(array);
        return NULL;
    }
    Py_DECREF(used);
    return array;
}

/* A new C-contiguous array of a native type number, for no particular input. */
static PyObject *pool_empty(int number, int ndim, npy_intp const *shape) {
    PyArray_Descr *type = PyArray_DescrFromType(number);
    size_t size = type ? PyDataType_ELSIZE(type) : 0;
    for (int i = 0; i < ndim; ++i) {
        if (size > (size_t)PY_SSIZE_T_MAX / (shape[i] > 0 ? (size_t)shape[i] : 1)) {
            Py_XDECREF(type);
            return PyErr_Format(PyExc_MemoryError, "cnorm would need an array of %zd times %zu bytes",
                                (Py_ssize_t)shape[i], size);
        }
        size *= shape[i];
    }
    if (size && pool_limit) return pool_array(type, ndim, shape, size, NULL);
    return type ? PyArray_NewFromDescr(&PyArray_Type, type, ndim, shape, NULL, NULL, 0, NULL) : NULL;
}

#endif
