# Rows, forward: LayerNorm and RMSNorm. A unit is a row of L elements, with a weight per element.
# rows_backward.pyx has the gradients.
from libc.stdlib cimport free

from cnorm.kernels.job cimport ROW_BATCHES, TWO_SWEEPS, Job
from cnorm.kernels.loops cimport Coefficients
from cnorm.kernels.moments cimport ElementRange, UnitBlocks, element_at, run_left, unit_blocks
from cnorm.kernels.rows_alignment cimport align_parameters
from cnorm.kernels.schedule cimport schedule_units_forward
from cnorm.kernels.segments_apply cimport segment_apply
from cnorm.kernels.unit_sweeps cimport forward_row_batches, forward_two_sweeps, forward_units
from cnorm.kernels.units cimport has_element_params


cdef void row_apply(const Job *job, const UnitBlocks *blocks, const Coefficients *coeffs, Py_ssize_t unit,
                    const char *x, char *y, const ElementRange *extent) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias over a range of a row, one contiguous run at a time."""
    cdef Py_ssize_t segment, element, step, position
    for segment in range(extent.segment, extent.segment + extent.count):
        element = extent.begin
        while element < extent.end:
            step = min(run_left(blocks, element), extent.end - element)
            position = segment * blocks.elements + element  # of the weight that goes with the element
            blocks.loops.apply_elementwise(element_at(blocks, &job.x, x, segment, element),
                                           <char *> element_at(blocks, &job.y, y, segment, element),
                                           step, position, coeffs, job.activation)
            element += step


cdef int rows_forward(Job *job) noexcept nogil:
    """y = (x - mean) * rstd * weight + bias, of each row."""
    cdef UnitBlocks blocks = unit_blocks(job, False)
    cdef void *copies
    cdef int failed
    # without a weight, a row is one segment
    blocks.apply = row_apply if has_element_params(job) else segment_apply
    schedule_units_forward(job, &blocks)
    if job.head.schedule_only != NULL:
        job.head.schedule_only[0] = blocks.schedule
        return 0
    copies = align_parameters(job, &blocks)
    if blocks.schedule.strategy == ROW_BATCHES:
        failed = forward_row_batches(job, &blocks)
    elif blocks.schedule.strategy == TWO_SWEEPS:
        failed = forward_two_sweeps(job, &blocks)
    else:
        failed = forward_units(job, &blocks)
    free(copies)
    return failed
