"""Whole networks with and without cnorm: a training step and evaluation, at two sizes each.

    pip install torch==2.13.0 -r bench/networks.txt
    python bench/networks.py --write docs/networks.md

The networks are those of timm, torchvision, transformers and diffusers, with random weights. Each
exists three times: as it is, accelerated, and once more as it is for a control. The three take
turns, in an order that changes, and the ratio of two times is taken within a turn; the median over
the turns counts. The control shows what the machine makes of a ratio that ought to be 1: its
spread is half the width of the middle 80 % of its ratios, over the root of their number.
"""

import argparse
import contextlib
import copy
import importlib
import platform
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import nn

import cnorm
from cnorm.interop.torch import accelerate, report

LIBRARIES = ("torch", "timm", "torchvision", "transformers", "diffusers")


def library(name):
    """Import a library, and torchvision before it, which the others import when they need it."""
    if find_spec("torchvision"):
        _torchvision()
    return importlib.import_module(name)


@cache
def _torchvision():
    """Import torchvision, also where its compiled operators do not fit torch.

    Its wheel for GPUs beside torch's for CPUs cannot load its operators, and then fails to register
    what belongs to them. None of the networks needs one.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    _torchvision.operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _torchvision.operators.define(schema)
    return importlib.import_module("torchvision")


# ---- networks ----


@dataclass(frozen=True)
class Network:
    """A network: how it is made, and its input for each size."""

    name: str
    make: callable
    inputs: callable
    sizes: tuple


def images(*sizes, channels=3):
    def inputs(size):
        batch, pixels = size
        return {"": torch.randn(batch, channels, pixels, pixels)}

    return inputs, sizes


def tokens(*sizes, vocabulary=1000, **more):
    def inputs(size):
        batch, length = size
        names = ("input_ids", *more)
        return {name: torch.randint(0, vocabulary, (batch, length)) for name in names}

    return inputs, sizes


def of_timm(name, *sizes, **options):
    def make():
        return library("timm").create_model(name, pretrained=False, num_classes=100, **options)

    return Network(f"timm {name}", make, *images(*sizes))


def of_torchvision(name, *sizes, label="", **options):
    def make():
        models = library("torchvision").models
        more = {}
        if options.get("frozen"):
            more["norm_layer"] = library("torchvision").ops.misc.FrozenBatchNorm2d
        return getattr(models, name)(weights=None, num_classes=100, **more)

    return Network(f"torchvision {name}{label}", make, *images(*sizes))


def of_transformers(name, kind, config, *sizes, more=(), **options):
    def make():
        transformers = library("transformers")
        settings = getattr(transformers, config)(vocab_size=1000, **options)
        return getattr(transformers, kind)(settings)

    return Network(f"transformers {name}", make, *tokens(*sizes, **dict.fromkeys(more)))


def _diffusers():
    library("diffusers").utils.logging.set_verbosity_error()
    return library("diffusers")


def _unet():
    return _diffusers().UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def _unet_inputs(size):
    batch, pixels = size
    return {"": torch.randn(batch, 3, pixels, pixels), "timestep": torch.tensor(7)}


def _autoencoder():
    return _diffusers().AutoencoderKL(
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


WIDE = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
LLAMA = WIDE | {"intermediate_size": 1024, "num_key_value_heads": 4}
NETWORKS = (
    of_timm("efficientnet_b0", (2, 96), (8, 192)),
    of_timm("mobilenetv3_small_100", (2, 96), (16, 192)),
    of_timm("densenet121", (2, 64), (8, 160)),
    of_timm("resnetv2_50x1_bit", (1, 64), (4, 160)),
    of_timm("convnext_atto", (2, 64), (8, 192)),
    of_timm("vit_tiny_patch16_224", (1, 224), (8, 224)),
    of_torchvision("resnet18", (2, 64), (8, 192)),
    of_torchvision("resnet50", (1, 64), (4, 192), label=", frozen", frozen=True),
    of_torchvision("convnext_tiny", (1, 64), (4, 160)),
    of_torchvision("swin_t", (1, 96), (4, 160)),
    of_transformers("Llama", "LlamaForCausalLM", "LlamaConfig", (1, 32), (4, 256), **LLAMA),
    of_transformers(
        "Qwen3", "Qwen3ForCausalLM", "Qwen3Config", (1, 32), (4, 256), head_dim=64, **LLAMA
    ),
    of_transformers(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        (1, 32),
        (4, 192),
        more=("decoder_input_ids",),
        d_model=512,
        num_layers=3,
        dropout_rate=0.0,
    ),
    of_transformers("BERT", "BertModel", "BertConfig", (1, 32), (4, 256), **WIDE),
    Network("diffusers UNet2DModel", _unet, _unet_inputs, ((1, 16), (4, 64))),
    Network("diffusers AutoencoderKL", _autoencoder, *images((1, 32), (2, 96))),
)


# Layers that leave out something at random, and their attribute for how often
RANDOM = {"StochasticDepth": "p", "DropPath": "drop_prob"}


def made(network, seed=0):
    """The network with weights of its own, without what is random when it runs."""
    torch.manual_seed(seed)
    model = network.make()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)):
            module.p = 0.0
        kind = type(module).__name__
        if kind in RANDOM:
            setattr(module, RANDOM[kind], 0.0)
    return model


def outputs(model, inputs):
    """What a network returns first, as a tensor."""
    named = dict(inputs)
    given = [named.pop("")] if "" in named else []
    y = model(*given, **named)
    while not isinstance(y, torch.Tensor):
        y = y[0] if isinstance(y, (tuple, list)) else next(iter(y.values()))
    return y


def train(model, optimizer, inputs):
    optimizer.zero_grad()
    outputs(model, inputs).pow(2).mean().backward()
    optimizer.step()


def evaluate(model, optimizer, inputs):
    with torch.inference_mode():
        outputs(model, inputs)


# ---- what is measured ----


def typical_errors(model, fast, network, size, training, draws=3):
    """The median of each error over some inputs.

    Where a ReLU's input is 0 but for rounding, one sign that differs from float64's changes the
    gradients by 1e-4 and more: an input in ten or so, with torch as with cnorm.
    """
    found = []
    for seed in range(1, 1 + draws):
        torch.manual_seed(seed)
        found.append(errors(model, fast, network.inputs(size), training))
    return [statistics.median(e) for e in zip(*found, strict=True)]


def errors(model, fast, inputs, training):
    """Relative errors of the result, or of all gradients, against the network in float64."""
    values = []
    for m, dtype in ((model, torch.float64), (model, torch.float32), (fast, torch.float32)):
        m = copy.deepcopy(m).train(training).to(dtype)
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        y = outputs(m, given)
        if training:
            y.pow(2).mean().backward()
            y = torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
        values.append(y.detach().double())
    exact, *computed = values
    return [((y - exact).norm() / exact.norm()).item() for y in computed]


def share(model, inputs, clock):
    """The part of the time of a forward pass that its norms take."""
    spent, began = [0.0], {}
    handles = []
    names = report(model).left
    for name, module in model.named_modules():
        if name in names:
            before = module.register_forward_pre_hook(lambda m, _: began.__setitem__(m, clock()))
            after = module.register_forward_hook(
                lambda m, *_: spent.__setitem__(0, spent[0] + clock() - began[m])
            )
            handles += [before, after]
    with torch.no_grad():
        outputs(model, inputs)
        shares = []
        for _ in range(5):
            spent[0], start = 0.0, clock()
            outputs(model, inputs)
            shares.append(spent[0] / (clock() - start))
    for handle in handles:
        handle.remove()
    return statistics.median(shares)


PLACES = 4


def measure(step, made, inputs, seconds, rounds, clock):
    """Milliseconds of torch, its ratio to cnorm, to the control, and the control's spread.

    `made` are torch's model and cnorm's. Where the weights of a model lie in memory changes its
    time by one or two per cent, the same in every turn: the copies are made PLACES times anew.
    """
    order, turns = [0, 1, 2], []
    for place in range(1, 1 + PLACES):
        random.shuffle(order)
        given = {}
        for i in order:
            model = copy.deepcopy(made[i % 2])
            given[i] = model, torch.optim.SGD(model.parameters(), lr=1e-6)
        for i in order * 2:  # warms up
            step(*given[i], inputs)
        end = time.perf_counter() + seconds / PLACES
        while len(turns) < rounds * place / PLACES or time.perf_counter() < end:
            random.shuffle(order)
            times = [0.0] * 3
            for i in order:
                start = clock()
                step(*given[i], inputs)
                times[i] = clock() - start
            turns.append(times)
    ratios, controls = [t[0] / t[1] for t in turns], sorted(t[0] / t[2] for t in turns)
    width = (controls[int(0.9 * (len(turns) - 1))] - controls[int(0.1 * (len(turns) - 1))]) / 2
    return {
        "ms": 1000 * statistics.median(t[0] for t in turns),
        "times": statistics.median(ratios),
        "control": statistics.median(controls),
        "spread": width / len(turns) ** 0.5,
        "turns": len(turns),
    }


def rows(network, sizes, seconds, rounds, clock):
    """A row for each size, and for training and evaluation."""
    model = made(network)
    fast = accelerate(copy.deepcopy(model))
    found = report(fast)
    for size in sizes:
        torch.manual_seed(1)
        inputs = network.inputs(size)
        part = share(model.eval(), inputs, clock)
        for what, step, training in (("training", train, True), ("evaluation", evaluate, False)):
            of_torch, of_cnorm = typical_errors(model, fast, network, size, training)
            models = model.train(training), fast.train(training)
            row = measure(step, models, inputs, seconds, rounds, clock)
            yield row | {
                "network": network.name,
                "layers": f"{len(found.replaced)} of {len(found.replaced) + len(found.left)}",
                "size": "x".join(map(str, size)),
                "what": what,
                "share": part,
                "torch error": of_torch,
                "cnorm error": of_cnorm,
            }


COLUMNS = {
    "network": "{network}",
    "norms replaced": "{layers}",
    "input": "{size}",
    "": "{what}",
    "norms' part of forward": "{share:.0%}",
    "torch, ms": "{ms:.1f}",
    "times": "{times:.2f}",
    "control": "{control:.2f} ± {spread:.2f}",
    "error, torch": "{torch error:.1e}",
    "error, cnorm": "{cnorm error:.1e}",
}


SIZES = {"small": slice(1), "large": slice(1, 2), "both": slice(2)}


def line(cells):
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="", help="only those whose name matches")
    parser.add_argument("--sizes", choices=SIZES, default="both")
    parser.add_argument("--seconds", type=float, default=10, help="for each row, at least")
    parser.add_argument("--rounds", type=int, default=20, help="turns for each row, at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time of the processor, on one thread: for a machine that has other work",
    )
    parser.add_argument("--write", help="a Markdown file for the table")
    arguments = parser.parse_args()
    clock = time.perf_counter
    if arguments.cpu_time:
        arguments.threads, clock = 1, time.thread_time
    torch.set_num_threads(arguments.threads)
    cnorm.set_num_threads(arguments.threads)
    random.seed(0)
    installed = [name for name in LIBRARIES if find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in installed)
    table = [line(COLUMNS), line(["---"] * len(COLUMNS))]
    print(f"{versions}; {arguments.threads} threads", *table, sep="\n", flush=True)
    with open(arguments.write, "w") if arguments.write else contextlib.nullcontext() as file:
        if file:
            header = f"{versions}, {arguments.threads} threads of {platform.processor()}"
            print(header, "", *table, sep="\n", file=file, flush=True)
        for network in NETWORKS:
            if not re.search(arguments.networks, network.name):
                continue
            sizes = network.sizes[SIZES[arguments.sizes]]
            for row in rows(network, sizes, arguments.seconds, arguments.rounds, clock):
                text = line(form.format(**row) for form in COLUMNS.values())
                print(text, flush=True)
                if file:
                    print(text, file=file, flush=True)


if __name__ == "__main__":
    main()
