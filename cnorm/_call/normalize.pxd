cdef object normalize_forward(object input, object p, object dim, object eps, object out, object return_stats)
cdef object normalize_backward_of(object grad_output, object input, object norm, object p, object dim, object eps,
                                  object out)
