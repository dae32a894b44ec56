# normalize_image.
cdef object image_normalized(object input, object mean, object std, object max_value, object channel_axis,
                             object out_channel_axis, object dtype, object out)
