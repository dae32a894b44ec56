"""The grid: which operation, in which direction, on which arrays.

A case is plain data, so it travels to the workers as JSON. Shapes are written (N, C, *S)
whatever the layout; `arrays` makes them channels last in memory where the case says so.
"""

import dataclasses
import math
import zlib

import numpy as np

ROWS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "np.add")
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one kind of array."""

    op: str
    shape: tuple
    direction: str = "forward"
    dtype: str = "float32"
    layout: str = "first"  # "first": (N, C, *S); "last": (N, *S, C)
    training: bool = True  # batch norm only
    groups: int = 32  # group norm only
    size: int = 5  # response norm only
    clip: bool = False  # ReLU6 follows: `clip=(0, 6)`; not of modules
    axis: int = -1  # of a row; rows only
    each: bool = False  # weight and bias differ from sample to sample
    module: bool = False  # call the layer, not the function
    overhead: bool = False  # measures the call, not the memory
    headline: bool = False  # shown in the README's chart

    @property
    def name(self):
        words = [self.op, "x".join(map(str, self.shape)), SHORT[self.dtype]]
        if self.op == "group_norm":
            words[0] += f"({self.groups})"
        if self.op == "local_response_norm":
            words[0] += f"({self.size})"
        if self.axis != -1:
            words.append(f"axis {self.axis}")
        if self.each:
            words.append("per sample")
        if not self.training:
            words.append("eval")
        if self.layout == "last":
            words.append("channels last")
        if self.clip:
            words.append("relu6")
        if self.module:
            words.append("module")
        if self.direction == "backward":
            words.append("backward")
        return " ".join(words)

    @property
    def family(self):
        if self.op == "local_response_norm":
            return "window"
        if self.op in ROWS:
            return "rows" if self.axis == -1 else "columns"
        is_matrix = self.op in ("batch_norm", "switch_norm") and len(self.shape) == 2
        return "columns" if self.layout == "last" or is_matrix else "segments"

    @property
    def channel_axis(self):
        return -1 if self.layout == "last" else 1

    @property
    def parameter_size(self):
        return self.shape[self.axis] if self.op in ROWS else self.shape[1]

    @property
    def parameter_shape(self):
        """The shape of weight and bias: the input's rank where rows have them per sample."""
        if not self.each:
            return (self.parameter_size,)
        if self.op not in ROWS:
            return self.shape[:2]
        row = self.axis % len(self.shape)
        return tuple(n if i in (0, row) else 1 for i, n in enumerate(self.shape))

    @property
    def memory_shape(self):
        """The shape in the order of memory."""
        n, *rest = self.shape
        return (n, *rest[1:], rest[0]) if self.layout == "last" else self.shape

    @property
    def nbytes(self):
        return math.prod(self.shape) * {"float64": 8, "float32": 4}.get(self.dtype, 2)


def numpy_dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def arrays(case):
    """Return the arrays of a case by name; the same in every process."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    dtype, size = numpy_dtype(case.dtype), case.parameter_size

    def normal(shape, mean=0.0):
        return (rng.standard_normal(shape, np.float32) + np.float32(mean)).astype(dtype)

    made = {
        "x": normal(case.memory_shape, 0.5),
        "weight": normal(case.parameter_shape, 1.0),
        "bias": normal(case.parameter_shape),
        "running_mean": normal(size),
        "running_var": np.abs(normal(size, 2.0)),
    }
    if case.op.startswith("add_"):
        made["residual"] = normal(case.memory_shape)
    if case.direction == "backward":
        made["dy"] = normal(case.memory_shape)
    return made


def _overhead():
    yield Case("np.add", (1, 16), overhead=True)
    for shape in [(1, 1), (1, 4), (1, 16), (1, 64), (4, 16)]:
        yield Case("layer_norm", shape, overhead=True)
    yield Case("layer_norm", (1, 16), module=True, overhead=True)
    yield Case("layer_norm", (1, 64), module=True, overhead=True)
    yield Case("rms_norm", (1, 16), overhead=True)
    yield Case("batch_norm", (4, 16), overhead=True)
    yield Case("batch_norm", (1, 16), training=False, overhead=True)
    yield Case("switch_norm", (4, 16), overhead=True)
    yield Case("switch_norm", (2, 8, 4, 4), overhead=True)
    yield Case("group_norm", (1, 8, 8), groups=2, overhead=True)
    yield Case("instance_norm", (1, 8, 8), overhead=True)


def _rows(direction):
    known = {(8, 128, 768), (65536, 64)}
    shapes = [
        (1, 768),
        (100, 768),
        (8, 128, 768),
        (4096, 1024),
        (1_000_000, 16),
        (65536, 64),
        (8192, 256),
        (64, 4096),
        (1, 65536),
        (256, 65536),
        (1000, 49),
    ]
    for shape in shapes:
        yield Case("layer_norm", shape, direction, headline=shape in known)
    for shape in [(8, 128, 768), (65536, 64), (256, 65536)]:
        yield Case("rms_norm", shape, direction, headline=shape == (8, 128, 768))
    for dtype in ["float64", "bfloat16", "float16"]:
        bf16 = dtype == "bfloat16"
        yield Case("layer_norm", (8, 128, 768), direction, dtype, headline=bf16)
    yield Case("layer_norm", (65536, 64), direction, "bfloat16")
    yield Case("rms_norm", (8, 128, 768), direction, "bfloat16")
    yield Case("add_layer_norm", (8, 128, 768), direction)
    yield Case("add_rms_norm", (8, 128, 768), direction)


def _batch(direction):
    usual = (32, 64, 56, 56)
    images = [
        usual,
        (64, 512, 7, 7),
        (8, 128, 32, 32),
        (1, 64, 56, 56),
        (32, 3, 224, 224),
        (64, 64, 112, 112),
    ]
    for layout in ["first", "last"]:
        for shape in images:
            yield Case("batch_norm", shape, direction, layout=layout, headline=shape == usual)
        yield Case("batch_norm", usual, direction, "bfloat16", layout=layout)
        yield Case("batch_norm", (4, 32, 16, 56, 56), direction, layout=layout)
        yield Case("batch_norm", usual, direction, layout=layout, training=False)
        yield Case("batch_norm", usual, direction, layout=layout, clip=True)
        yield Case("batch_norm", (1, 512, 7, 7), direction, layout=layout, training=False)
    yield Case("batch_norm", (16, 64, 1000), direction)
    for shape in [(4096, 256), (128, 1024), (65536, 64)]:
        yield Case("batch_norm", shape, direction, headline=shape == (4096, 256))


def _group_and_instance(direction):
    for layout in ["first", "last"]:
        first = layout == "first"
        yield Case("group_norm", (8, 128, 32, 32), direction, layout=layout, headline=first)
        yield Case("group_norm", (16, 256, 56, 56), direction, layout=layout)
        yield Case("group_norm", (1, 32, 256, 256), direction, layout=layout, groups=1)
        yield Case("instance_norm", (16, 256, 32, 32), direction, layout=layout, headline=first)
        yield Case("instance_norm", (1, 3, 512, 512), direction, layout=layout)
    yield Case("group_norm", (8, 128, 32, 32), direction, "bfloat16")
    yield Case("instance_norm", (16, 256, 32, 32), direction, "bfloat16")


def _switch(direction):
    """Each beside a batch norm of the same shape."""
    for shape in [(32, 64, 56, 56), (16, 64, 28, 28), (4, 32, 16, 56, 56), (4096, 256), (256, 128)]:
        yield Case("switch_norm", shape, direction)
    yield Case("switch_norm", (32, 64, 56, 56), direction, layout="last")
    yield Case("batch_norm", (16, 64, 28, 28), direction)
    yield Case("batch_norm", (256, 128), direction)


def _other_axes(direction):
    for op, shape in [
        ("layer_norm", (8, 96, 56, 56)),
        ("layer_norm", (16, 384, 14, 14)),
        ("rms_norm", (8, 96, 56, 56)),
    ]:
        yield Case(op, shape, direction, axis=1)
    yield Case("layer_norm", (8, 96, 56, 56), direction, "bfloat16", axis=1)


def _per_sample(direction):
    yield Case("layer_norm", (8, 128, 768), direction, each=True)
    yield Case("rms_norm", (8, 128, 768), direction, each=True)
    yield Case("layer_norm", (8, 96, 56, 56), direction, axis=1, each=True)
    for layout in ["first", "last"]:
        yield Case("group_norm", (8, 128, 32, 32), direction, layout=layout, each=True)
        yield Case("instance_norm", (16, 256, 32, 32), direction, layout=layout, each=True)
        yield Case("batch_norm", (32, 64, 56, 56), direction, layout=layout, each=True)


def _response(direction):
    yield Case("local_response_norm", (16, 96, 55, 55), direction, headline=True)
    yield Case("local_response_norm", (32, 64, 56, 56), direction)
    yield Case("local_response_norm", (32, 64, 56, 56), direction, layout="last")
    yield Case("local_response_norm", (16, 96, 55, 55), direction, "bfloat16")


def _normalize(direction):
    for shape in [(65536, 64), (8192, 768), (32, 64, 56, 56)]:  # embeddings, a map of features
        yield Case("normalize", shape, direction)
    yield Case("normalize", (32, 64, 56, 56), direction, layout="last")
    yield Case("normalize", (65536, 64), direction, "bfloat16")


def grid():
    """Return every case of the comparison."""
    cases = list(_overhead())
    for direction in ["forward", "backward"]:
        for part in (
            _rows, _batch, _group_and_instance, _other_axes, _per_sample, _switch, _response,
            _normalize,
        ):  # fmt: skip
            cases += part(direction)
    return cases


def everyday():
    """Return the cases of the pytest-benchmark suites: the headline ones and the overhead."""
    return [case for case in grid() if case.headline or case.overhead]
