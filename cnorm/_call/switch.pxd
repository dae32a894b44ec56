# SwitchNorm, from arguments to kernels.
cdef object switch_norm_forward(object input, object running_mean, object running_var, object weight, object bias,
                                object mean_weight, object var_weight, object training, object momentum, object eps,
                                object using_moving_average, object out, object channel_axis, object return_stats,
                                object negative_slope, object clip)
cdef object switch_norm_gradients(object grad_output, object input, object stats, object weight, object mean_weight,
                                  object var_weight, object bias, object out, object channel_axis,
                                  object negative_slope, object clip)
