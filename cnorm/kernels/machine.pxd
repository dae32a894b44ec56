cdef extern from "machine.h" nogil:
    ctypedef struct Machine:
        Py_ssize_t l1, l2, l3, rows_from_memory

    Machine MACHINE
