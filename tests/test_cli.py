"""``python -m cnorm``."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import cnorm
from cnorm import _cli, _dispatch, _operations, functional
from cnorm._cli import _screen, bench, check, stats


@pytest.fixture
def quick(monkeypatch):
    """Enough of each command to see that it works."""
    monkeypatch.setattr(check, "CASES", check.CASES[:1])
    monkeypatch.setattr(bench, "CASES", bench.CASES[:2])
    monkeypatch.setattr(bench, "SECONDS", 0.001)


def test_config(capsys):
    assert _cli.main([]) == 0
    text = capsys.readouterr().out
    assert cnorm.__version__ in text
    assert _cli.main(["--json"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert cnorm.__version__ in config.values()
    assert config["build"] in config["builds"]


def test_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cnorm", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cnorm.__file__).parents[1])},
    )
    assert cnorm.__version__ in json.loads(done.stdout).values()


def test_check_passes(capsys):
    assert _cli.main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2 : 2 + len(check.OPERATIONS)]] == list(
        check.OPERATIONS
    )
    assert lines[-2].startswith(f"Passed: {_dispatch.available()[0]}")
    assert lines[-1] == "No error is above its limit. Bits do not depend on build or threads."
    assert lines[0].startswith("worst error, as a share of its limit")


def test_check_covers_every_norm():
    names = {name for name in vars(functional) if name.endswith("_norm")}
    assert {name.split(",")[0] for name in check.OPERATIONS} >= names


@pytest.mark.parametrize("factor", [1 + 1e-4, np.nan])
def test_check_finds_what_is_wrong(capsys, monkeypatch, quick, factor):
    def wrong(F, i):
        *rest, grad_bias = _operations._layer(F, i)
        return *rest, grad_bias * grad_bias.dtype.type(factor if F is functional else 1)

    monkeypatch.setitem(check.OPERATIONS, "layer_norm", wrong)
    assert _cli.main(["check", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {r["operation"] for r in report["results"] if not r["passed"]} == {"layer_norm"}
    assert _cli.main(["check"]) == 1
    assert "FAILED layer_norm float32" in capsys.readouterr().out


def test_check_finds_builds_or_threads_that_differ(capsys, monkeypatch, quick):
    calls = []

    def drifting(F, i):
        calls.append(F)
        y, *rest = _operations._rms(F, i)
        return (np.nextafter(y, 2, dtype=y.dtype) if len(calls) % 2 else y), *rest

    monkeypatch.setattr(check, "OPERATIONS", {"rms_norm": drifting})
    monkeypatch.setattr(check, "LIMITS", {"float32": 32.0})
    assert _cli.main(["check"]) == 1
    assert "builds or threads differ in bits" in capsys.readouterr().out


def test_bench(capsys, quick):
    assert _cli.main(["bench", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread " in lines[0]
    rows = lines[2 : 2 + 2 * len(bench.CASES)]
    assert all(re.search(r"  \d+\.\d \+\d+%  ", row) for row in rows)
    assert lines[len(rows) + 2] == ""
    assert "the median batch took" in lines[len(rows) + 3]


@pytest.mark.parametrize("arguments", [["bench", "--json"], ["--json", "bench"]])
def test_bench_as_json(capsys, quick, arguments):
    assert _cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert cnorm.__version__ in report["config"].values()
    for result in report["results"]:
        assert {"cnorm", "numpy"} <= result["times"].keys() == result["spreads"].keys()
        assert all(time > 0 for time in result["times"].values())
        assert all(spread >= 0 for spread in result["spreads"].values())


@pytest.mark.parametrize("arguments", [["check", "--json"], ["--json", "check"]])
def test_check_as_json(capsys, quick, arguments):
    assert _cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


REPORT = {
    "threads": 2,
    "processors": 4,
    "busy_processors": 0.0,
    "calls_for_threads": 100,
    "calls_on_fewer_threads": 1,
    "threads_wait_briefly": False,
    "results": [],
}
RESULT = {"norm": "layer_norm", "shape": [2, 3], "direction": "forward"}


@pytest.mark.parametrize(
    ("busy", "spread", "said"),
    [
        (0.1, 0.02, []),
        (None, 0.02, []),
        (1.3, 0.02, ["The machine is busy: ", "used 1.3 of 4 processors"]),
        (0.1, 0.3, ["Times are uneven: ", "took 30% longer"]),
    ],
)
def test_bench_says_what_disturbs_it(busy, spread, said):
    times = {"times": {"cnorm": 2.0, "numpy": 5.0}, "spreads": {"cnorm": spread, "numpy": spread}}
    text = bench.render(REPORT | {"busy_processors": busy, "results": [RESULT | times]})
    for words in ("The machine is busy: ", "Times are uneven: "):
        assert (words in text) == (words in said)
    assert all(words in text for words in said)
    assert f"2.0 +{spread:.0%}" in text
    assert "2.5x" in text


@pytest.mark.parametrize(("numpy", "shown"), [(200.0, "100.0x"), (201.0, ">100x")])
def test_bench_shows_no_ratio_that_only_a_disturbance_gives(numpy, shown):
    times = {"times": {"cnorm": 2.0, "numpy": numpy}, "spreads": {"cnorm": 0.0, "numpy": 0.0}}
    line = bench.render(REPORT | {"results": [RESULT | times]}).splitlines()[2]
    assert line.split()[-1] == shown


def test_bench_says_how_long_it_takes(capsys):
    with pytest.raises(SystemExit):
        _cli.main(["bench", "--help"])
    assert "in about 10 seconds" in capsys.readouterr().out


def test_check_says_what_it_left_out(capsys, monkeypatch, quick):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert _cli.main(["check"]) == 0
    assert (
        "\nbfloat16 was not checked: it needs ml_dtypes: pip install 'cnorm-layers[half]'\n"
        in capsys.readouterr().out
    )


@pytest.mark.skipif(bench._busy(0.05) is None, reason="this system does not say who is busy")
def test_a_busy_machine_is_noticed():
    """Each processor that this process may use runs a loop of another process."""
    count = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        assert bench._busy() > bench.BUSY * count
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_counters_that_stand_still_say_nothing(monkeypatch):
    monkeypatch.setattr(bench, "_ticks", lambda: {"cpu0": (10, 20), "cpu1": (5, 20)})
    assert bench._busy(0) is None
    counts = iter([{"cpu0": (10, 20), "cpu1": (5, 20)}, {"cpu0": (20, 30), "cpu1": (5, 30)}])
    monkeypatch.setattr(bench, "_ticks", lambda: next(counts))
    assert bench._busy(0) == 1


def run(*arguments, flags=("-m", "cnorm"), **environment):
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, *flags, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )


@pytest.mark.parametrize("command", [[], ["check"], ["--version"]])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CNORM_NUM_THREADS", "abc", "CNORM_NUM_THREADS must be an integer from 1 to 1024"),
        ("CNORM_ISA", "foo", "CNORM_ISA must be one of baseline, avx2, avx512"),
    ],
)
def test_a_wrong_environment_variable_is_one_line(elsewhere, command, name, value, said):
    done = run(*command, **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cnorm: {said}, but got {value!r}\n"


@pytest.mark.parametrize("command", [["-c", "import cnorm"], ["-m", "other", "cnorm"]])
def test_a_wrong_environment_variable_is_an_error_of_a_program(elsewhere, tmp_path, command):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import cnorm")
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"CNORM_ISA": "foo"},
    )
    assert done.stderr.splitlines()[-1].startswith("ValueError: CNORM_ISA must be one of")


@pytest.mark.parametrize("flags", [("-mcnorm",), ("-Bm", "cnorm"), ("-W", "error", "-m", "cnorm")])
def test_a_wrong_environment_variable_is_one_line_however_python_is_started(elsewhere, flags):
    done = run(flags=flags, CNORM_ISA="foo")
    assert done.stderr.splitlines() == [
        "cnorm: CNORM_ISA must be one of baseline, avx2, avx512, but got 'foo'"
    ]


def test_an_instruction_set_may_be_written_in_capitals(elsewhere):
    plainest = _dispatch.available()[0]
    config = json.loads(run("--json", CNORM_ISA=plainest.title()).stdout)
    assert config["build"] == plainest


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"cnorm {cnorm.__version__}\n"


def test_the_script_is_the_command_line():
    """As pip makes it from the metadata of an installed cnorm, and as it is called."""
    with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
        target = tomllib.load(file)["project"]["scripts"]["cnorm"]
    module, name = target.split(":")
    assert getattr(importlib.import_module(module), name) is _cli.main


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_no_traceback(elsewhere, unbuffered):
    paths = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-m", "cnorm", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": unbuffered},
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: f"{case.norm} {case.shape}")
def test_bench_compares_the_same_computation(case):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *case.shape)).astype("f4")
    weight, bias = rng.normal(size=(2, int(np.prod(case.parameters)))).astype("f4")
    calls = [peer(case, x, dy, weight, bias) for peer in (bench._cnorm, bench._numpy, bench._torch)]
    for ours, numpys, torchs in zip(*calls, strict=True):
        results = [
            [np.asarray(a.detach() if hasattr(a, "detach") else a).ravel() for a in listed(call())]
            for call in (ours, numpys, torchs)
        ]
        for one, two, three in zip(*results, strict=False):
            scale = np.abs(one).max()
            np.testing.assert_allclose(two, one, rtol=0, atol=1e-4 * scale)
            np.testing.assert_allclose(three, one, rtol=0, atol=1e-4 * scale)


def listed(result):
    return result if isinstance(result, (tuple, list)) else [result]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (
            ["bench", "--threads", "0"],
            "--threads: the number of threads must be 1 to 1024, but got 0",
        ),
        (["bench", "--threads", "x"], "--threads: number of threads must be a whole number, but"),
        (["--threads=1"], "unrecognized arguments: --threads=1"),
    ],
)
def test_mistakes(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(arguments)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "usage: python -m cnorm" in err
    assert said in err


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_goes_over_everything_and_is_silent_off_a_terminal(capsys, monkeypatch, with_tqdm):
    if not with_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(_screen.progress("abc", "title")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_plain_progress_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(_screen._plain("abcd", "title", width=4)) == ["a", "b", "c", "d"]
    err = capsys.readouterr().err
    assert "title [##  ] 2/4" in err
    assert err.endswith("\r")


def test_table():
    assert _screen.table(["name", "x"], [["a", "10.5"], ["long name", "2"]]).splitlines() == [
        "name          x",
        "---------  ----",
        "a          10.5",
        "long name     2",
    ]


# ---- stats ----


def measured(capsys, *arguments):
    assert _cli.main(["stats", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)["results"]


def written(folder, kind, a):
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, a)
    elif kind == "npz":
        np.savez_compressed(path, x=a)
    else:
        zarr = pytest.importorskip("zarr", reason="the extra [dask] brings zarr")
        store = zarr.open_array(str(path), mode="w", shape=a.shape, chunks=(4, 3, 2), dtype=a.dtype)
        store[...] = a
    return path


@pytest.mark.parametrize("axis", [None, (0,), (0, 1), (-1, 0), (0, 1, 2), ()], ids=str)
@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_stats_in_parts(capsys, tmp_path, monkeypatch, rng, kind, axis):
    a = rng.integers(-100, 100, (11, 7, 3)).astype(np.int16)
    monkeypatch.setattr(stats, "PART_BYTES", 50)
    path = written(tmp_path, kind, a)
    option = [] if axis is None else [f"--axis={','.join(map(str, axis))}"]
    (result,) = measured(capsys, path, *option)
    assert result["shape"] == [11, 7, 3] and result["dtype"] == "int16"
    f = a.astype(np.float64)
    kept = f.mean(axis).shape
    assert np.array_equal(result["count"], np.full(kept, a.size // max(f.mean(axis).size, 1)))
    np.testing.assert_allclose(result["mean"], f.mean(axis), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(result["std"], f.std(axis), rtol=1e-13)
    assert np.array_equal(result["min"], a.min(axis)) and np.array_equal(result["max"], a.max(axis))


def test_stats_of_nan_and_nothing(capsys, tmp_path):
    a = np.array([[1.0, 2.0], [np.nan, 4.0], [3.0, np.inf]])
    np.savez(tmp_path / "x.npz", a=a, empty=np.zeros((0, 2)), mask=a > 1)
    path = tmp_path / "x.npz"
    one, empty, mask = measured(capsys, path, "--axis=0")
    assert one["mean"] == [None, None] and one["max"] == [None, "inf"] and one["count"] == [3, 3]
    assert empty["count"] == [0, 0] and empty["min"] == [None, None]
    assert mask["mean"] == pytest.approx([1 / 3, 1]) and mask["max"] == [1, 1]
    (one,) = measured(capsys, path, "--axis=0", "--nan-policy=omit", "--key=a", "--ddof=1")
    assert (one["count"][0], one["mean"][0], one["min"][0], one["max"][0]) == (2, 2, 1, 3)
    assert one["std"][0] == pytest.approx(2**0.5)


def test_stats_as_a_table(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(200.0).reshape(2, 100))
    assert _cli.main(["stats", str(tmp_path / "x.npy"), "--axis", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-5:] == ["count", "mean", "std", "min", "max"]
    assert lines[3].split() == ["x.npy[1,", ":]", "100", "149.5", "28.86607", "100", "199"]
    assert _cli.main(["stats", str(tmp_path / "x.npy"), "--axis", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "... and 36 more: --json has all"
    assert _cli.main(["stats", str(tmp_path / "x.npy")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("x.npy 2x100 float64")


def test_stats_leave_out_what_holds_no_numbers(capsys, tmp_path):
    objects = np.array([1, "x"], object)
    np.savez(tmp_path / "x.npz", names=np.array(["a", "b"]), a=np.ones(2), o=objects)
    assert _cli.main(["stats", str(tmp_path / "x.npz")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2].startswith("a 2 float64") and len(out.splitlines()) == 3
    assert err.splitlines() == [
        "cnorm: names holds text (<U1), left out; --key NAME reads one array of a file",
        "cnorm: o holds objects (object), left out; --key NAME reads one array of a file",
    ]


def test_stats_of_an_image(capsys, tmp_path):
    image = pytest.importorskip("PIL.Image")
    a = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image.fromarray(a).save(tmp_path / "x.png")
    (result,) = measured(capsys, tmp_path / "x.png", "--axis=0,1")
    assert result["mean"] == list(a.mean((0, 1))) and result["max"] == [21, 22, 23]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("none.npy", [], "does not exist"),
        ("x.txt", [], "must be .npy, .npz, a folder of zarr or an image"),
        ("bad.npy", [], "cannot be read"),
        ("x.npy", ["--axis=2"], "--axis 2: x.npy of shape (2, 2) has 2 axes"),
        ("c.npy", [], "nothing to take statistics of: c.npy holds complex numbers (complex128)"),
        ("text.npz", ["--key=names"], "names holds text (<U1)"),
        ("o.npy", [], "o.npy holds objects, not numbers"),
        ("x.npz", ["--key=b"], "has no array 'b'"),
        ("nan.npy", ["--nan-policy=raise"], "contains NaN"),
    ],
)
def test_stats_mistakes_are_one_line(capsys, tmp_path, name, options, said):
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    np.save(tmp_path / "nan.npy", np.full(2, np.nan))
    np.save(tmp_path / "c.npy", np.ones(2, complex))
    np.save(tmp_path / "o.npy", np.array([1, "x"], object))
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    np.savez(tmp_path / "text.npz", a=np.ones(2), names=np.array(["x", "y"]))
    for file in ("x.txt", "bad.npy"):
        (tmp_path / file).write_text("nothing")
    assert _cli.main(["stats", str(tmp_path / name), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cnorm: ") and err.count("\n") == 1
    assert said in err
