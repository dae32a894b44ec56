"""The examples run, and what they print and draw is right."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name, *needs):
    for module in needs:
        pytest.importorskip(module, reason=f"the extra [examples] brings {module}")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def size_of_picture(path):
    import matplotlib.image

    return matplotlib.image.imread(path).shape[:2]


@pytest.fixture
def quickstart():
    return load("quickstart", "sklearn", "matplotlib")


@pytest.fixture
def train_digits():
    return load("train_digits", "sklearn", "matplotlib", "tqdm")


def test_quickstart_prints_and_draws(quickstart, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    quickstart.main(["--picture", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert "has the numbers of train" in lines[-3] and "nothing was copied" in lines[-2]
    rows = [line for line in lines if " ms" in line]
    titles = ["BatchNorm2d, train", "BatchNorm2d, eval", "InstanceNorm2d", "GroupNorm", "LayerNorm"]
    assert len(rows) == len(titles)
    for row, title in zip(rows, titles, strict=True):
        assert row.startswith(title)
    assert rows[2].split()[2:8] == ["0.00"] * 3 + ["1.00"] * 3  # InstanceNorm, mean and std
    height, width = size_of_picture(picture)
    assert height > 500 and width > 1200


def test_quickstart_norms_are_the_formula(quickstart):
    photographs = quickstart.load_photographs()
    for panel in quickstart.make_panels(photographs):
        axes = (0, 1, 2) if panel.axes is None else panel.axes  # eval remembers BatchNorm's
        expected = quickstart.numpy_norm(photographs.astype(np.float64), axes)
        np.testing.assert_allclose(panel.norm(photographs), expected, atol=2e-5)


def test_digits_learn_with_a_norm(train_digits, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    curves = train_digits.main(["--picture", str(picture)])
    out = capsys.readouterr().out
    for name in ("BatchNorm1d", "LayerNorm", "GroupNorm"):
        assert curves[name]["accuracies"][-1] >= 0.97
        assert curves[name]["losses"][-1] < 0.1 * curves["no norm"]["losses"][-1]
        assert name in out
    assert min(size_of_picture(picture)) > 300


def test_digits_linear_has_the_right_gradient(train_digits):
    rng = np.random.default_rng(0)
    layer = train_digits.Linear(5, 3, rng).double()
    x, dy = rng.standard_normal((4, 5)), rng.standard_normal((4, 3))
    layer(x)
    dx = layer.backward(dy)
    step = 1e-6
    for array, grad in [(x, dx), (layer.weight, layer.weight.grad), (layer.bias, layer.bias.grad)]:
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + step
            above = (layer(x) * dy).sum()
            array[index] = value - step
            below = (layer(x) * dy).sum()
            array[index] = value
            assert grad[index] == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)


def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell, and the pictures and texts that are stored in it are those of these cells."""
    for module in ("nbclient", "ipykernel", "sklearn", "matplotlib"):
        pytest.importorskip(module, reason=f"the extras [examples] and [notebook] bring {module}")
    import nbformat
    from nbclient import NotebookClient

    def outputs(notebook):
        """What each cell gave: kinds of data, and the words of texts, without the numbers."""
        return [
            [
                sorted(o["data"]) if "data" in o else re.sub(r"[-\d.]+", "", o["text"]).split()
                for o in cell.get("outputs", ())
            ]
            for cell in notebook.cells
        ]

    stored = nbformat.read(EXAMPLES / "norms.ipynb", as_version=4)
    notebook = nbformat.read(EXAMPLES / "norms.ipynb", as_version=4)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend shows the pictures
    options = {"timeout": 300, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}, **options).execute()
    assert outputs(notebook) == outputs(stored)
    assert sum("image/jpeg" in kinds for cell in outputs(stored) for kinds in cell) == 4


def test_convnext_block_is_torchs(capsys):
    assert load("convnext_block", "torch").main((2, 16, 9, 11)) < 2e-6
    assert "cnorm" in capsys.readouterr().out


def test_llama_decoder_is_torchs(capsys):
    assert load("llama_decoder", "torch").main((2, 16), (2, 4, 32)) < 1e-5
    assert "cnorm" in capsys.readouterr().out


def test_normalize_zarr_writes_equal_bits_with_twice_the_workers(elsewhere, tmp_path):
    """A process of its own, whose workers import the example as their main program."""
    for module in ("dask", "distributed", "zarr"):
        pytest.importorskip(module, reason=f"the extra [dask] brings {module}")
    command = [sys.executable, str(EXAMPLES / "normalize_zarr.py"), "--gigabytes", "0.02"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 worker:" in done.stdout and "2 workers" in done.stdout
    assert done.stdout.endswith("the bits of both runs are equal\n")

    import zarr

    source = zarr.open_array(str(tmp_path / "images.zarr"), mode="r")[...]
    found = zarr.open_array(str(tmp_path / "normalized-2.zarr"), mode="r")[...]
    f = source.astype(np.float64)
    want = (f - f.mean((0, 1, 2))) / f.std((0, 1, 2))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=4e-7, atol=4e-7)


def test_padded_sequences_do_not_see_their_padding(rng):
    """With `where=` a training step is the same however far the batch is padded."""
    example = load("train_padded", "sklearn")
    parts = [rng.normal(size=(8, n)).astype(np.float32) for n in (9, 14, 30, 22)]
    found = []
    for length in (30, 47):
        network = example.Network(True, np.random.default_rng(0))
        scores = network.forward(*example.padded(parts, length))
        network.backward(np.ones_like(scores))
        found.append([scores, *(p.grad for p in network.parameters())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
