from cnorm.kernels.job cimport Job, WindowJob, norm_kernel, window_kernel

cdef int observe_norm(norm_kernel kernel, Job *job) except? -2
cdef int observe_window(window_kernel kernel, WindowJob *job) except? -2
cdef int note(str text) except -1
