"""Looking inside a call: its schedule, for `cnorm.explain`, and a line a call, for CNORM_VERBOSE.

A call pays for this one test of a global (`observing`), unless somebody observes.
"""

import sys
import threading
import time

from cnorm cimport _runtime
from cnorm._runtime cimport POLICY_SAMPLE, PolicyCall, begin_team, end_team, kernels, likely_team
from cnorm.kernels.job cimport (
    ACT_CLIP, ACT_NONE, ACT_SLOPE, COLUMN_BLOCKS, COLUMNS_BACKWARD, COLUMNS_FORWARD, COLUMNS_MOMENTS, CROSSED_BACKWARD,
    CROSSED_FORWARD, GIVEN_BATCHES, GIVEN_IN_ORDER, IMAGE_FORWARD, MASKED, PARTIALS_GUIDED, PARTIALS_STATIC, ROW_BATCHES,
    ROW_RANGES, ROWS_BACKWARD, ROWS_FORWARD, RUNS, SAMPLES_PER_THREAD, SEGMENTS_BACKWARD, SEGMENTS_FORWARD,
    SEGMENTS_MOMENTS, SELECTED_COLUMNS_MOMENTS, SEQUENCES_MOMENTS, STANDARDIZE_FORWARD, TWO_SWEEPS, UNIT_BATCHES,
    UNIT_BY_UNIT, WINDOW_BACKWARD, WINDOW_FORWARD, WINDOW_SPANS, Axes, ImageJob, Job, JobHead, Kernel, MaskedJob, MomentsJob,
    Schedule, StandardizeJob, WindowJob)

KERNEL_NAMES = {   # family and direction
    ROWS_FORWARD: ("rows", "forward"),
    ROWS_BACKWARD: ("rows", "backward"),
    SEGMENTS_MOMENTS: ("segments", "moments"),
    SEGMENTS_FORWARD: ("segments", "forward"),
    SEGMENTS_BACKWARD: ("segments", "backward"),
    COLUMNS_MOMENTS: ("columns", "moments"),
    COLUMNS_FORWARD: ("columns", "forward"),
    COLUMNS_BACKWARD: ("columns", "backward"),
    CROSSED_FORWARD: ("crossed", "forward"),
    CROSSED_BACKWARD: ("crossed", "backward"),
    WINDOW_FORWARD: ("window", "forward"),
    WINDOW_BACKWARD: ("window", "backward"),
    SEQUENCES_MOMENTS: ("sequences", "moments"),
    SELECTED_COLUMNS_MOMENTS: ("columns", "moments"),
    STANDARDIZE_FORWARD: ("runs", "standardize"),
    IMAGE_FORWARD: ("image", "formula"),
    MASKED: ("masked", ""),
}
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
    "image": ("images", "channels", "rows", "pixels"),
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


cdef dict layout_of(str family, const Py_ssize_t *shape):
    """The sizes of a job's axes by their names, which have a number where several axes have one name."""
    names = AXES[family]
    return {name if names.count(name) == 1 else f"{name} {i}": shape[i] for i, name in enumerate(names)}


cdef dict axes_layout(const Axes *axes, str name):
    """The sizes of axes, which are one where there are none."""
    cdef int i
    if axes.count < 2:
        return {name: axes.shape[0] if axes.count else 1}
    return {f"{name} {i}": axes.shape[i] for i in range(axes.count)}


cdef dict described(Kernel kernel, const JobHead *head):
    """What a kernel is to do, and how the elements lie."""
    cdef const Job *norm
    cdef const WindowJob *window
    cdef const MomentsJob *moments
    cdef const StandardizeJob *standardize
    cdef const ImageJob *image
    cdef const MaskedJob *masked
    family, direction = KERNEL_NAMES[kernel]
    activation = ""
    if kernel <= CROSSED_BACKWARD:
        norm = <const Job *> head
        layout = layout_of(family, norm.shape)
        activation = "slopes below 0" if norm.elements.unit_slopes != NULL else (
            activation_text(norm.activation, norm.slope, norm.low, norm.high))
    elif kernel <= WINDOW_BACKWARD:
        window = <const WindowJob *> head
        if window.channels_last:
            family = "window, channels last"
        layout = layout_of(family, window.shape)
        activation = activation_text(window.activation, window.slope, window.low, window.high)
    elif kernel <= SELECTED_COLUMNS_MOMENTS:
        moments = <const MomentsJob *> head
        layout = {**axes_layout(&moments.kept, "kept"), **axes_layout(&moments.reduced, "reduced")}
    elif kernel == STANDARDIZE_FORWARD:
        standardize = <const StandardizeJob *> head
        if standardize.inverse:
            direction = "inverse"
        elif standardize.measure != NULL:
            direction = "moments and standardize"
        layout = axes_layout(&standardize.axes, "axis")
        activation = "clip" if standardize.clips else ""
    elif kernel == MASKED:
        masked = <const MaskedJob *> head
        family, direction = KERNEL_NAMES[masked.kernel]
        family += ", masked"
        layout = {"parts": masked.part.size, "units": masked.unit.size, "segments": masked.segment.size,
                  "items": masked.length}
        activation = activation_text(masked.job.activation, masked.job.slope, masked.job.low, masked.job.high)
    else:
        image = <const ImageJob *> head
        if image.table != NULL:
            direction = "table"
        layout = layout_of(family, image.shape)
    return {"family": family, "direction": direction, "dtype": DTYPES[head.dtype], "layout": layout,
            "activation": activation}


cdef dict planned(const Schedule *schedule, int wanted, int reason):
    """How a kernel is to do it."""
    return {
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


cdef int choose(PolicyCall *call, unsigned kind, Py_ssize_t size, int *threads) except -1:
    """The threads of a call, of those that it may have; where it is only explained, those that it would get."""
    call.started = 0
    call.reason = 0
    if is_explained():
        threads[0] = likely_team(size, threads[0])
    elif threads[0] > 1:
        threads[0] = begin_team(call, kind, size, threads[0])
    return 0


cdef int observe(Kernel kernel, JobHead *job, Py_ssize_t size, unsigned kind) except? -2:
    """Run a kernel, with a line about it where that is wanted; or only explain it. Returns what the kernel does."""
    cdef Schedule schedule
    cdef PolicyCall call
    cdef int failed, wanted = job.threads
    cdef double began
    choose(&call, kind, size, &job.threads)
    job.schedule_only = &schedule
    kernels.run(kernel, job)
    job.schedule_only = NULL
    step = {**described(kernel, job), **planned(&schedule, wanted, call.reason)}
    hand_over(step)
    began = time.perf_counter()
    with nogil:
        failed = kernels.run(kernel, job)
        end_team(&call)
    if verbose:
        report(step, time.perf_counter() - began)
    return failed
