"""Looking inside a call: its schedule, for `cnorm.explain`, and a line a call, for CNORM_VERBOSE.

A call pays for this one test of a global (`observing`), unless somebody observes.
"""

import sys
import threading
import time

from cnorm cimport _runtime
from cnorm._runtime cimport POLICY_SAMPLE, PolicyCall, begin_team, end_team, kernels, likely_team
from cnorm.kernels.job cimport (ACT_CLIP, ACT_NONE, ACT_SLOPE, COLUMN_BLOCKS, GIVEN_BATCHES, GIVEN_IN_ORDER,
                                PARTIALS_GUIDED, PARTIALS_STATIC, ROW_BATCHES, ROW_RANGES, RUNS, SAMPLES_PER_THREAD,
                                TWO_SWEEPS, UNIT_BATCHES, UNIT_BY_UNIT, WINDOW_SPANS, Axes, ImageJob, Job, MomentsJob,
                                Schedule, StandardizeJob, WindowJob, image_kernel, moments_kernel, norm_kernel,
                                standardize_kernel, window_kernel)

STRATEGIES = {
    ROW_BATCHES: "row batches",
    UNIT_BY_UNIT: "unit by unit",
    UNIT_BATCHES: "unit batches",
    TWO_SWEEPS: "two sweeps",
    GIVEN_IN_ORDER: "in order of memory",
    GIVEN_BATCHES: "unit batches in order of memory",
    PARTIALS_STATIC: "partial sums, fixed shares",
    PARTIALS_GUIDED: "partial sums, one by one",
    SAMPLES_PER_THREAD: "samples per thread",
    COLUMN_BLOCKS: "column blocks",
    ROW_RANGES: "row ranges",
    WINDOW_SPANS: "spans",
    RUNS: "runs in order of memory",
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "float32", "float16", "bfloat16", "int8", "uint8", "int16",
          "uint16", "int32", "uint32", "int64", "uint64")
AXES = {
    "rows": ("outer", "rows", "segments", "runs", "elements"),
    "segments": ("outer", "units", "segments", "runs", "elements"),
    "columns": ("samples", "rows", "rows", "rows", "columns"),
    "crossed": ("samples", "rows", "rows", "rows", "columns"),
    "window": ("samples", "channels", "-", "runs", "elements"),
    "window, channels last": ("samples", "rows", "rows", "rows", "channels"),
}

cdef bint verbose = False
cdef int explaining = 0        # how many threads are inside `explain`
cdef object lock = threading.Lock()
cdef object of_thread = threading.local()


class Explained(BaseException):
    """Ends a call that is explained, once its schedule is known. Not an Exception: no caller shall catch it."""


cdef int set_observing() except -1:
    _runtime.observing = 1 if verbose or explaining else 0
    return 0


def set_verbose(bint on):
    """Print a line for every call to stderr, or no longer."""
    global verbose
    verbose = on
    set_observing()


def explain_call(function, args, kwargs):
    """What the first kernel of a call would do, and notes on copies: (dict or None, list of str). Runs nothing."""
    global explaining
    notes = []
    of_thread.notes = notes
    of_thread.step = None
    with lock:
        explaining += 1
        set_observing()
    try:
        function(*args, **kwargs)
    except Explained:
        pass
    finally:
        of_thread.notes = None
        with lock:
            explaining -= 1
            set_observing()
    return of_thread.step, notes


cdef int note(str text) except -1:
    """Keep a remark for whoever explains this call."""
    notes = getattr(of_thread, "notes", None)
    if notes is not None:
        notes.append(text)
    return 0


cdef str activation_text(int activation, double slope, double low, double high):
    """What an activation is called in a table; empty without one."""
    if activation == ACT_NONE:
        return ""
    if activation == ACT_CLIP:
        return "clip" + ("" if low != low else f", {low:g} at least") + ("" if high != high else f", {high:g} at most")
    return f"slope {slope:g} below 0" if activation == ACT_SLOPE else "slopes below 0"


cdef dict described(str family, str direction, int dtype, const Py_ssize_t *shape, const Schedule *schedule,
                    str activation, int wanted, int reason):
    return plan_of(family, direction, dtype, {
        AXES[family][i] + ("" if AXES[family].count(AXES[family][i]) == 1 else f" {i}"): shape[i] for i in range(5)},
        schedule, activation, wanted, reason)


cdef dict plan_of(str family, str direction, int dtype, dict layout, const Schedule *schedule, str activation,
                  int wanted, int reason):
    return {
        "family": family,
        "direction": direction,
        "dtype": DTYPES[dtype],
        "layout": layout,
        "activation": activation,
        "strategy": STRATEGIES[schedule.strategy],
        "threads": schedule.threads,
        "threads_allowed": wanted,
        "fewer_because": ("" if schedule.threads == wanted else
                          "to see what it takes" if reason == POLICY_SAMPLE else "more would wait for processors"),
        "items": schedule.items,
        "rows_per_pass": schedule.rows_per_pass,
        "units_per_batch": schedule.units_per_batch,
        "stores": "non-temporal" if schedule.nontemporal else "plain",
        "prefetch": bool(schedule.prefetch_segments or schedule.prefetch_bytes),
    }


cdef bint is_explained():
    """Whether somebody explains the calls of this thread."""
    return getattr(of_thread, "notes", None) is not None


cdef int hand_over(dict step) except -1:
    """Give the step to whoever explains this call, and end the call; else nothing."""
    if not is_explained():
        return 0
    of_thread.step = step
    raise Explained


cdef int report(dict step, double seconds) except -1:
    layout = "x".join(str(n) for n in step["layout"].values())
    threads = str(step["threads"])
    if step["fewer_because"]:
        threads += f" of {step['threads_allowed']}: {step['fewer_because']}"
    sys.stderr.write(f"cnorm,{step['family']},{step['direction']},{step['dtype']},{layout},{step['strategy']},"
                     f"threads:{threads},stores:{step['stores']},{1e3 * seconds:.6g} ms\n")
    return 0


cdef tuple names_of(norm_kernel kernel):
    if kernel == kernels.rows_forward:
        return "rows", "forward"
    if kernel == kernels.rows_backward:
        return "rows", "backward"
    if kernel == kernels.segments_moments:
        return "segments", "moments"
    if kernel == kernels.segments_forward:
        return "segments", "forward"
    if kernel == kernels.segments_backward:
        return "segments", "backward"
    if kernel == kernels.columns_moments:
        return "columns", "moments"
    if kernel == kernels.columns_forward:
        return "columns", "forward"
    if kernel == kernels.columns_backward:
        return "columns", "backward"
    return "crossed", "forward" if kernel == kernels.crossed_forward else "backward"


cdef int observe_norm(norm_kernel kernel, Job *job, Py_ssize_t size) except? -2:
    """Run a kernel, with a line about it where that is wanted; or only explain it. Returns what the kernel does."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind_of_norm(kernel, job), size, &job.threads)
    job.schedule_only = &schedule
    kernels.run_norm(kernel, job)
    job.schedule_only = NULL
    family, direction = names_of(kernel)
    step = described(family, direction, job.dtype, job.shape, &schedule,
                     "slopes below 0" if job.elements.unit_slopes != NULL else
                     activation_text(job.activation, job.slope, job.low, job.high), wanted, call.reason)
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run_norm(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed


cdef int observe_window(window_kernel kernel, WindowJob *job, Py_ssize_t size) except? -2:
    """Run a kernel of the window family, as `observe_norm` does its own."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind_of_window(kernel, job), size, &job.threads)
    job.schedule_only = &schedule
    kernels.run_window(kernel, job)
    job.schedule_only = NULL
    direction = "forward" if kernel == kernels.window_forward else "backward"
    step = described("window, channels last" if job.channels_last else "window", direction, job.dtype, job.shape,
                     &schedule, activation_text(job.activation, job.slope, job.low, job.high), wanted,
                     call.reason)
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run_window(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed


cdef int choose(PolicyCall *call, unsigned kind, Py_ssize_t size, int *threads) except -1:
    """The threads of a call, of those that it may have; where it is only explained, those that it would get."""
    call.started = 0
    call.reason = 0
    if is_explained():
        threads[0] = likely_team(size, threads[0])
    elif threads[0] > 1:
        threads[0] = begin_team(call, kind, size, threads[0])
    return 0


cdef dict layout_of(const Axes *axes, str name):
    """The sizes of axes, which are one where there are none."""
    cdef int i
    if axes.count < 2:
        return {name: axes.shape[0] if axes.count else 1}
    return {f"{name} {i}": axes.shape[i] for i in range(axes.count)}


cdef int observe_moments(moments_kernel kernel, MomentsJob *job, Py_ssize_t size) except? -2:
    """Run a kernel of moments in double, as `observe_norm` does its own."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind_of_moments(kernel, job), size, &job.threads)
    job.schedule_only = &schedule
    kernels.run_moments(kernel, job)
    job.schedule_only = NULL
    step = plan_of("columns" if kernel == kernels.selected_columns_moments else "sequences", "moments", job.dtype,
                   {**layout_of(&job.kept, "kept"), **layout_of(&job.reduced, "reduced")}, &schedule, "", wanted,
                   call.reason)
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run_moments(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed


cdef int observe_standardize(standardize_kernel kernel, StandardizeJob *job, Py_ssize_t size) except? -2:
    """Run a kernel of standardize, as `observe_norm` does its own."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind_of_standardize(kernel, job), size, &job.threads)
    job.schedule_only = &schedule
    kernels.run_standardize(kernel, job)
    job.schedule_only = NULL
    step = plan_of("runs", "inverse" if job.inverse else "standardize", job.dtype, layout_of(&job.axes, "axis"),
                   &schedule, "clip" if job.clips else "", wanted, call.reason)
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run_standardize(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed


cdef int observe_image(image_kernel kernel, ImageJob *job, Py_ssize_t size) except? -2:
    """Run a kernel of images, as `observe_norm` does its own."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind_of_image(kernel, job), size, &job.threads)
    job.schedule_only = &schedule
    kernels.run_image(kernel, job)
    job.schedule_only = NULL
    layout = {name: job.shape[i] for i, name in enumerate(("images", "channels", "rows", "pixels"))}
    step = plan_of("image", "table" if job.table != NULL else "formula", job.dtype, layout, &schedule, "", wanted,
                   call.reason)
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run_image(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed
