/* Memory for results: freed blocks are kept, within a bound, for the next result of their size.
 *
 * New memory of a few MB and more comes from the system page by page, and touching it for the first
 * time costs as much as a kernel. For a few KB, malloc and what NumPy does around it take as long as a norm.
 * NumPy lets an array have an allocator of its own (NEP 49): a block comes back here only when the last array
 * that refers to it is gone.
 *
 * Blocks begin at a line. That of a few pages begins 41 lines, more than half a page, on from the array that it is
 * for, if any, modulo a page: where a result is written just behind what is read, a processor takes one for the other
 * and waits; at half a page, or as far as a row is long, both would share the sets of the first cache; and few rows are
 * a multiple of 41 lines. The address of the memory that a block is part of lies just before it.
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

#define NUMPY_DOMAIN 389047 /* numpy.lib.tracemalloc_domain */

enum { RECYCLE_SLOTS = 32, RECYCLE_LARGE = 1 << 19, RECYCLE_SMALL_BYTES = 1 << 22 };

/* The blocks of one class, the oldest first: many small ones must not take the slots of what took the system's
 * time. */
typedef struct {
    struct { void *block; size_t size; } slots[RECYCLE_SLOTS];
    int count;
    size_t bytes;
} RecycleKept;

static RecycleKept recycle_small, recycle_large;
static size_t recycle_limit = (size_t)256 << 20;

#if defined(Py_GIL_DISABLED)
static atomic_flag recycle_busy = ATOMIC_FLAG_INIT;
static void recycle_lock(void) {
    while (atomic_flag_test_and_set_explicit(&recycle_busy, memory_order_acquire)) {}
}
static void recycle_unlock(void) { atomic_flag_clear_explicit(&recycle_busy, memory_order_release); }
#else /* arrays are made and freed by who holds the interpreter's lock */
static void recycle_lock(void) {}
static void recycle_unlock(void) {}
#endif

enum { PAGE = 4096, LINE = 64, BESIDE = 41 * LINE, PLACED = 4 * PAGE, MORE = PAGE + LINE, HUGE_FROM = 1 << 22 };

static size_t recycle_room(size_t size) { return size < PLACED ? size + 2 * LINE : size + MORE; }

/* The block for an array that is read at an address. */
static void *recycle_block(void *memory, size_t size, uintptr_t read) {
    if (!memory) return NULL;
    const uintptr_t start = ((uintptr_t)memory + sizeof(void *) + LINE - 1) / LINE * LINE;
    const uintptr_t place = (read + BESIDE) / LINE * LINE;
    void *block = (void *)(size < PLACED ? start : start + (place - start) % PAGE);
    ((void **)block)[-1] = memory;
    return block;
}
static void *recycle_memory(void *block) { return block ? ((void **)block)[-1] : NULL; }

/* Only memory that free() and realloc() take. */
static void *recycle_new(size_t size, uintptr_t read) {
    if (size > SIZE_MAX - MORE) return NULL;
    void *memory = NULL;
#if !defined(_WIN32)
    if (size >= PLACED) {
        if (posix_memalign(&memory, PAGE, recycle_room(size))) return NULL;
#if defined(__linux__) && defined(MADV_HUGEPAGE) /* as NumPy does for its own; only a hint */
        if (size >= HUGE_FROM) madvise(memory, recycle_room(size) / PAGE * PAGE, MADV_HUGEPAGE);
#endif
        return recycle_block(memory, size, read);
    }
#endif
    memory = malloc(recycle_room(size));
    return recycle_block(memory, size, read);
}

static RecycleKept *recycle_class(size_t size) { return size < RECYCLE_LARGE ? &recycle_small : &recycle_large; }

static void *recycle_remove(RecycleKept *kept, int i) {
    void *block = kept->slots[i].block;
    kept->bytes -= kept->slots[i].size;
    if (i != --kept->count)
        memmove(kept->slots + i, kept->slots + i + 1, (kept->count - i) * sizeof(kept->slots[0]));
    return block;
}

/* A kept block, or a new one. */
static inline void *recycle_take(size_t size, uintptr_t read) {
    RecycleKept *kept = recycle_class(size);
    void *block = NULL;
    recycle_lock();
    for (int i = kept->count - 1; i >= 0 && !block; --i)
        if (kept->slots[i].size == size) block = recycle_remove(kept, i);
    recycle_unlock();
    return block ? recycle_block(recycle_memory(block), size, read) : recycle_new(size, read);
}

static _Thread_local uintptr_t recycle_read; /* what the next block is for that NumPy asks for */

static void *recycle_malloc(void *context, size_t size) {
    (void)context;
    return recycle_take(size, recycle_read);
}

static void *recycle_calloc(void *context, size_t count, size_t size) {
    void *block = size && count > SIZE_MAX / size ? NULL : recycle_new(count * size, 0);
    (void)context;
    return block ? memset(block, 0, count * size) : NULL;
}

static void *recycle_realloc(void *context, void *block, size_t size) {
    (void)context;
    if (!block) return recycle_new(size, 0);
    char *memory = recycle_memory(block);
    const uintptr_t into = (uintptr_t)block - (uintptr_t)memory; /* what is there stays as far in */
    if (size > SIZE_MAX - MORE || !(memory = realloc(memory, size + MORE))) return NULL;
    block = memory + into;
    ((void **)block)[-1] = memory;
    return block;
}

static size_t recycle_bytes(void) { return recycle_small.bytes + recycle_large.bytes; }

/* Keep a block, if there is room. */
static inline int recycle_keep(void *block, size_t size) {
    RecycleKept *kept = recycle_class(size);
    recycle_lock();
    const int fits = kept->count < RECYCLE_SLOTS && recycle_bytes() + size <= recycle_limit
                     && recycle_small.bytes + size * (kept == &recycle_small) <= RECYCLE_SMALL_BYTES;
    if (fits) {
        kept->slots[kept->count].block = block;
        kept->slots[kept->count++].size = size;
        kept->bytes += size;
    }
    recycle_unlock();
    return fits;
}

/* Free the oldest block of a class, or of the other where it has none; whether there was one. */
static int recycle_drop(RecycleKept *kept) {
    void *block = NULL;
    recycle_lock();
    if (!kept->count) kept = kept == &recycle_small ? &recycle_large : &recycle_small;
    if (kept->count) block = recycle_remove(kept, 0);
    recycle_unlock();
    free(recycle_memory(block));
    return block != NULL;
}

static void recycle_displace(void *block, size_t size) {
    if (size <= recycle_limit)
        while (recycle_drop(recycle_class(size)))
            if (recycle_keep(block, size)) return;
    free(recycle_memory(block));
}

static void recycle_free(void *context, void *block, size_t size) {
    (void)context;
    if (block && !recycle_keep(block, size)) recycle_displace(block, size);
}

static void recycle_set_limit(size_t limit) {
    recycle_lock();
    recycle_limit = limit;
    recycle_unlock();
    while (recycle_bytes() > limit && recycle_drop(&recycle_large)) {}
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

/* Made by `recycle_start` and never replaced, so that threads may read it without a lock. */
static PyObject *recycle_handle = NULL;

static int recycle_start(void) {
    recycle_handle = PyCapsule_New(&recycle_handler, "mem_handler", NULL);
    return recycle_handle ? 0 : -1;
}

/* A new C-contiguous array of some bytes, for another that is read at an address; takes the reference to the type.
 *
 * What PyArray_NewFromDescr does where its caller has set an allocator, in half the time: that is a variable of
 * the context, to be set, looked up and set again. */
static PyObject *recycle_array(PyArray_Descr *type, int ndim, npy_intp const *shape, size_t size, const void *read) {
    PyObject *array;
    void *block;
    if (!(block = recycle_take(size, (uintptr_t)read))) {
        Py_DECREF(type);
        return PyErr_Format(PyExc_MemoryError, "cnorm could not allocate %zu bytes for an array", size);
    }
    array = PyArray_NewFromDescr(&PyArray_Type, type, ndim, shape, NULL, block, NPY_ARRAY_CARRAY, NULL);
    if (!array) {
        recycle_free(NULL, block, size);
        return NULL;
    }
    Py_INCREF(recycle_handle);
    ((PyArrayObject_fields *)array)->mem_handler = recycle_handle;
    PyArray_ENABLEFLAGS((PyArrayObject *)array, NPY_ARRAY_OWNDATA);
    PyTraceMalloc_Track(NUMPY_DOMAIN, (uintptr_t)block, size);
    return array;
}

/* A new array like another, in its memory order. NumPy makes the empty ones, which have bytes, too, and the small
 * ones that are not C-contiguous. */
static PyObject *recycle_like(PyArrayObject *like) {
    const size_t size = PyArray_NBYTES(like);
    PyObject *before, *array, *used;
    if (size && recycle_limit && PyArray_IS_C_CONTIGUOUS(like)) {
        Py_INCREF(PyArray_DESCR(like));
        return recycle_array(PyArray_DESCR(like), PyArray_NDIM(like), PyArray_DIMS(like), size, PyArray_DATA(like));
    }
    if (size < RECYCLE_LARGE || !recycle_limit) return PyArray_NewLikeArray(like, NPY_KEEPORDER, NULL, 0);
    if (!(before = PyDataMem_SetHandler(recycle_handle))) return NULL;
    recycle_read = (uintptr_t)PyArray_DATA(like);
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

/* A new C-contiguous array of a native type. */
static PyObject *recycle_simple(int number, int ndim, npy_intp const *shape) {
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
    if (size && recycle_limit) return recycle_array(type, ndim, shape, size, NULL);
    return type ? PyArray_NewFromDescr(&PyArray_Type, type, ndim, shape, NULL, NULL, 0, NULL) : NULL;
}

#endif
