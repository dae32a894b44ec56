"""`cnorm.explain` and CNORM_VERBOSE: what a call would do, without doing it."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from operations import OPERATIONS

import cnorm
import cnorm.functional as F


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "family", "strategy"),
    [
        (lambda x: (F.layer_norm, x.reshape(4, -1, 16), 16), "rows", "row batches"),
        (lambda x: (F.layer_norm, x.reshape(8, -1), x.size // 8), "rows", "unit by unit"),
        (lambda x: (F.instance_norm, x), "segments", "row batches"),
        (lambda x: (F.group_norm, x, 2), "segments", "unit by unit"),
        (lambda x: (F.local_response_norm, x, 3), "window", "spans"),
        (
            lambda x: (F.switch_norm, x.reshape(-1, 64), *[None] * 4, [0, 0], [0, 0], True),
            "crossed",
            "row ranges",
        ),
    ],
)
def test_family_and_strategy(call, family, strategy):
    function, *args = call(images(4, 8, 32, 64))
    plan = cnorm.explain(function, *args)
    assert (plan.step["family"], plan.step["strategy"]) == (family, strategy)
    assert function.__name__ in str(plan)
    assert plan.copies == []


def test_channels_last_is_columns_without_a_copy():
    plan = cnorm.explain(F.batch_norm, images(4, 8, 8, 16), training=True, channel_axis=-1)
    assert plan.step["family"] == "columns"
    assert plan.copies == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_nothing_runs(operation):
    """Every operation, forward and backward: the call computes the same before and after."""
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 4, 6, 5, 7)).astype(np.float32)
    arguments = operation.draw(rng, x.shape, 1, np.float32)
    before = operation.run(F, x, dy, arguments)
    copies = {k: np.copy(v) for k, v in arguments.items() if isinstance(v, np.ndarray)}
    assert cnorm.explain(operation.run, F, x, dy, arguments).step is not None
    for name, copy in copies.items():
        np.testing.assert_array_equal(arguments[name], copy)
    after = operation.run(F, x, dy, arguments)
    for name, expected in before.items():
        if not isinstance(expected, np.ndarray):  # switch norm keeps its statistics in an object
            continue
        np.testing.assert_array_equal(after[name], expected)


def test_state_stays():
    norm = cnorm.BatchNorm2d(3)
    plan = cnorm.explain(norm, images(2, 3, 4, 4))
    assert plan.function == "BatchNorm2d"
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()
    norm(images(2, 3, 4, 4))
    assert norm.num_batches_tracked == 1


def test_out_stays():
    x, out = images(8, 16), np.full((8, 16), 7, np.float32)
    cnorm.explain(F.layer_norm, x, 16, out=out)
    assert (out == 7).all()


def test_copies_are_named():
    x = images(4, 8, 6, 6)
    assert "byte order" in cnorm.explain(F.instance_norm, x.astype(">f4")).copies[0]
    assert "strides" in cnorm.explain(F.instance_norm, x[..., ::2]).copies[0]
    shifted = images(17, 16)
    plan = cnorm.explain(F.layer_norm, shifted[1:], 16, out=shifted[:-1])
    assert "out overlaps" in plan.copies[0]


def test_errors_are_those_of_the_call():
    with pytest.raises(RuntimeError, match="expected input with shape"):
        cnorm.explain(F.layer_norm, images(4, 8), 7)
    assert F.layer_norm(images(4, 8), 8).shape == (4, 8)  # and nobody observes any longer


def test_nothing_to_compute():
    plan = cnorm.explain(F.layer_norm, np.ones((0, 8), np.float32), 8)
    assert plan.step is None
    assert "nothing to compute" in str(plan)


def test_other_threads_compute_meanwhile():
    x = images(64, 64)
    expected = F.layer_norm(x, 64)
    wrong = []

    def compute():
        for _ in range(200):
            if not np.array_equal(F.layer_norm(x, 64), expected):
                wrong.append(1)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert cnorm.explain(F.layer_norm, x, 64).step is not None
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_line_a_call():
    code = (
        "import numpy as np, cnorm.functional as F\n"
        "x = np.ones((2, 4, 3, 3), np.float32)\n"
        "F.layer_norm(x, 3), F.batch_norm(x, training=True), F.local_response_norm(x, 3)\n"
    )
    environment = {**os.environ, "CNORM_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert [line.split(",")[1] for line in lines] == ["rows", "segments", "window"]
    assert all(line.endswith(" ms") for line in lines)
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert quiet.stderr == ""


def test_the_activation_is_shown():
    x = images(4, 8, 6, 6)
    for how, text in [
        ({"clip": (0.0, 6.0)}, "clip, 0 at least, 6 at most"),
        ({"clip": (None, 0.5)}, "clip, 0.5 at most"),
        ({"negative_slope": 0.1}, "slope 0.1 below 0"),
        ({"negative_slope": np.ones(8)}, "slopes below 0"),
    ]:
        for function, *args in [
            (F.group_norm, x, 2), (F.layer_norm, x, 6), (F.local_response_norm, x, 3)
        ]:  # fmt: skip
            plan = cnorm.explain(function, *args, **how)
            assert plan.step["activation"] == text
            assert f"  {text}\n" in str(plan)
    assert "activation" not in str(cnorm.explain(F.group_norm, x, 2, clip=(None, None)))
