# Batch, instance and group norm.
cdef enum NormKind:
    BATCH_NORM
    INSTANCE_NORM
    GROUP_NORM


cdef object running_norm_forward(NormKind kind, object input, object running_mean, object running_var, object count,
                                 object weight, object bias, object from_input, object momentum, object eps,
                                 object out, object channel_axis, object return_stats, object negative_slope,
                                 object clip, object where)
cdef object group_norm_forward(object input, object num_groups, object weight, object bias, object eps,
                               object out, object channel_axis, object return_stats, object negative_slope, object clip,
                               object where)
cdef object channel_norm_backward(object grad_output, object input, object num_groups, object mean, object rstd,
                                  object weight, object bias, object from_input, NormKind kind, object out,
                                  object channel_axis, object negative_slope, object clip, object where=*)
