"""``python -m cnorm``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnorm
from cnorm import _cli, _operations, functional
from cnorm._cli import _screen, bench, check


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
    assert "All agree with the reference, to the same bits" in lines[-1]


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
    assert "1 threads" in lines[0]
    assert len(lines) == 2 + 2 * len(bench.CASES)
    assert _cli.main(["bench", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cnorm.__version__ in report["config"].values()
    assert all(time > 0 for r in report["results"] for time in r["times"].values())
    assert {"cnorm", "numpy"} <= report["results"][0]["times"].keys()


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


@pytest.mark.parametrize("arguments", [["nonsense"], ["bench", "--threads", "0"], ["--threads=1"]])
def test_mistakes(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        _cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m cnorm" in capsys.readouterr().err


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
