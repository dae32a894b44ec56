# Response norms.
cdef object response_norm_forward(object input, object size, object alpha, object beta, object k, bint legacy,
                                  object out, object channel_axis, object negative_slope, object clip)
cdef object response_norm_backward(object grad_output, object input, object size, object alpha, object beta,
                                   object k, bint legacy, object out, object channel_axis, object negative_slope,
                                   object clip)
