# Layer and rms norm, with a residual or without.
cdef enum Statistics:   # as the caller of forward gets them
    STATS_NONE
    STATS_ARRAYS
    STATS_KEPT          # what backward needs becomes item 0 of a list: the input, and bytes, rstd of every row, then
                        # the means. Two arrays take as long to make as a short row.


cdef object forward_contiguous(object input, object normalized_shape, object weight, object bias, bint centred,
                               object eps, object out, Statistics wanted, list kept)
cdef object forward_any(object input, object normalized_shape, object weight, object bias, bint centred, object eps,
                        object out, object channel_axis, Statistics wanted, list kept, object negative_slope,
                        object clip, object axis, object zero_centred, object where)
cdef object rows_norm_backward(object grad_output, object input, object normalized_shape, object mean,
                               object rstd, object weight, object bias, bint centred, object out,
                               object channel_axis, object negative_slope, object clip, object axis,
                               object zero_centred, object grad_sum=*, object where=*)
cdef object add_norm_forward(object input, object residual, object normalized_shape, object weight, object bias,
                             bint centred, object eps, object out, object residual_out, object channel_axis,
                             object return_stats, object negative_slope, object clip, object axis, object zero_centred,
                              object where=*)


cdef inline object rows_norm_forward(object input, object normalized_shape, object weight, object bias, bint centred,
                                     object eps, object out, object channel_axis, Statistics wanted, list kept,
                                     object negative_slope, object clip, object axis, object zero_centred,
                                     object where):
    """layer_norm (`centred`) or rms_norm, which takes an `eps` of None: the machine epsilon. `kept` is of
    STATS_KEPT."""
    if negative_slope is None and clip is None and axis is None and zero_centred is False and where is None:
        y = forward_contiguous(input, normalized_shape, weight, bias, centred, eps, out, wanted, kept)
        if y is not None:
            return y
    return forward_any(input, normalized_shape, weight, bias, centred, eps, out, channel_axis, wanted, kept,
                       negative_slope, clip, axis, zero_centred, where)
