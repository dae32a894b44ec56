"""The largest errors on hostile input, cnorm beside its peers.

    python bench/accuracy.py                  # prints the tables
    python bench/accuracy.py --write docs     # writes docs/accuracy_table.md

An error is measured against the reference in long double on the same input, in units of the
dtype's epsilon times the larger of the exact value and the root mean square of all exact values:
1 is about what rounding the exact result would cost.
"""

import argparse
import warnings
from pathlib import Path

import implementations
import numpy as np
from cases import Case, numpy_dtype
from tqdm import tqdm

import cnorm.functional as F
from cnorm import _reference

ROWS, LENGTH = 32, 1000
FORWARD_BOUND, BACKWARD_BOUND = 4, 16  # what cnorm promises, in epsilon
OPS = ("layer_norm", "rms_norm", "batch_norm", "instance_norm", "group_norm")


def hostile(rng):
    """Return {name: (dtype, rows)}: each row is a unit of the norms along rows."""
    normal = rng.standard_normal((ROWS, LENGTH))
    outlier = normal.copy()
    outlier[:, 123] = 1e4
    constant = np.broadcast_to(rng.standard_normal((ROWS, 1)), normal.shape)
    return {
        "mean 0": ("float32", normal),
        "mean 1e2": ("float32", normal + 1e2),
        "mean 1e4": ("float32", normal + 1e4),
        "mean 1e6": ("float32", normal + 1e6),
        "constant": ("float32", constant),
        "ramp": ("float32", np.broadcast_to(np.arange(LENGTH) * 1.0, normal.shape)),
        "outlier 1e4": ("float32", outlier),
        "million": ("float32", rng.standard_normal((2, 1_000_000)) + 10),
        "scale 1e30": ("float32", normal * 1e30),
        "scale 1e-30": ("float32", normal * 1e-30),
        "float64, mean 1e4": ("float64", normal + 1e4),
        "float16, mean 10": ("float16", normal + 10),
        "bfloat16, mean 10": ("bfloat16", normal + 10),
    }


def make(op, dtype, rows, rng):
    """Return a case and its arrays; `rows` become what the norm reduces over."""
    if op == "batch_norm":
        x = rows.reshape(len(rows), 4, -1).swapaxes(0, 1)  # (4, C, S): units cross samples
    elif op in ("instance_norm", "group_norm"):
        x = rows.reshape(2, -1, rows.shape[1] if op == "instance_norm" else rows.shape[1] // 4)
    else:
        x = rows
    dtype_name, dtype = dtype, numpy_dtype(dtype)
    case = Case(op, x.shape, dtype=dtype_name, groups=max(1, x.shape[1] // 4))
    size = case.parameter_size
    a = {
        "x": np.ascontiguousarray(x).astype(dtype),
        "weight": (1 + 0.1 * rng.standard_normal(size)).astype(dtype),
        "bias": rng.standard_normal(size).astype(dtype),
        "running_mean": np.zeros(size, dtype),
        "running_var": np.ones(size, dtype),
    }
    return case, a, rng.standard_normal(x.shape).astype(dtype)


def with_functions(functions, case, a, dy):
    """Run forward and backward with `cnorm.functional` or with the reference."""
    x, weight, bias = a["x"], a["weight"], a["bias"]
    forward = getattr(functions, case.op)
    backward = getattr(functions, f"{case.op}_backward")
    match case.op:
        case "layer_norm":
            y, *stats = forward(x, x.shape[-1:], weight, bias, return_stats=True)
            grads = backward(dy, x, x.shape[-1:], *stats, weight)
        case "rms_norm":
            y, *stats = forward(x, x.shape[-1:], weight, 1e-5, return_stats=True)
            grads = backward(dy, x, x.shape[-1:], *stats, weight)
        case "batch_norm":
            y, *stats = forward(x, None, None, weight, bias, True, return_stats=True)
            grads = backward(dy, x, *stats, weight)
        case "instance_norm":
            y, *stats = forward(x, None, None, weight, bias, return_stats=True)
            grads = backward(dy, x, *stats, weight)
        case "group_norm":
            y, *stats = forward(x, case.groups, weight, bias, return_stats=True)
            grads = backward(dy, x, case.groups, *stats, weight)
    return y, grads[0]


def with_cnorm(case, a, dy):
    return with_functions(F, case, a, dy)


def with_long_double(case, a, dy):
    wide = {name: value.astype(np.longdouble) for name, value in a.items()}
    return with_functions(_reference, case, wide, dy.astype(np.longdouble))


def with_torch(case, a, dy):
    peer = implementations.Torch(implementations.available_threads())
    t = {name: peer.tensor(case, value) for name, value in a.items()}
    x = t["x"].requires_grad_()
    if case.op == "rms_norm":
        y = peer.torch.nn.functional.rms_norm(x, x.shape[-1:], t["weight"], implementations.EPS)
    else:
        y = peer.forward(case)(**t)
    y.backward(peer.tensor(case, dy))
    return tuple(v.detach().double().numpy() for v in (y, x.grad))


def with_onnxruntime(case, a, dy):
    peer = implementations.OnnxRuntime(implementations.available_threads())
    inputs, model = peer.model(case, a)
    return peer.session(model).run(None, inputs)[0], None


def with_jax(case, a, dy):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    f = implementations.formula(jnp, case)
    fixed = {name: jnp.asarray(value) for name, value in a.items() if name != "x"}
    y, vjp = jax.vjp(jax.jit(lambda x: f(x, **fixed)), jnp.asarray(a["x"]))
    return y, vjp(jnp.asarray(dy))[0]


PEERS = {
    implementations.Torch: with_torch,
    implementations.OnnxRuntime: with_onnxruntime,
    implementations.Jax: with_jax,
}


def error(found, exact, dtype):
    """Return the largest error in epsilon, or infinity where a finite value is not."""
    import ml_dtypes

    eps = float(ml_dtypes.finfo(dtype).eps)
    found = np.asarray(found).astype(np.longdouble)
    scale = np.maximum(np.abs(exact), np.sqrt((exact * exact).mean()))
    # Nothing below the smallest normal number can be asked for.
    scale = np.maximum(scale, np.longdouble(float(ml_dtypes.finfo(dtype).tiny)) / eps)
    with np.errstate(invalid="ignore"):
        largest = float((np.abs(found - exact) / scale).max() / eps)
    return largest if np.isfinite(largest) else np.inf


def measure():
    """Return [(op, direction, input, {implementation: error})]."""
    rng = np.random.default_rng(0)
    peers = [(p.name, run) for p, run in PEERS.items() if p.is_installed()]
    work = [(op, name, *value) for op in OPS for name, value in hostile(rng).items()]
    found = []
    for op, name, dtype, rows in tqdm(work, unit="case"):
        case, a, dy = make(op, dtype, rows, rng)
        exact = with_long_double(case, a, dy)
        errors = [{}, {}]
        for peer, run in [("cnorm", with_cnorm), *peers]:
            try:
                results = run(case, a, dy)
            except Exception as reason:  # a peer without this operation or dtype
                if peer == "cnorm":
                    raise
                tqdm.write(f"{peer}, {case.name}: {str(reason)[:80]}")
                continue
            for i, result in enumerate(results):
                if result is not None:
                    errors[i][peer] = error(result, exact[i], a["x"].dtype)
        found += [(op, "forward", name, errors[0]), (op, "backward", name, errors[1])]
    return found


def number(value):
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "∞"
    return f"{value:.1f}" if value < 1000 else f"{value:.0e}"


def table(found):
    """Return the lines of a Markdown table and what breaks the promise."""
    names = ["cnorm", *(p.name for p in PEERS if p.is_installed())]
    lines = ["| operation | input | " + " | ".join(names) + " |"]
    lines.append("|---|---|" + "--:|" * len(names))
    broken = []
    for op, direction, name, errors in found:
        title = op if direction == "forward" else f"{op} backward"
        cells = [number(errors.get(peer)) for peer in names]
        lines.append(f"| {title} | {name} | " + " | ".join(cells) + " |")
        bound = FORWARD_BOUND if direction == "forward" else BACKWARD_BOUND
        best = min([value for peer, value in errors.items() if peer != "cnorm"], default=np.inf)
        if not errors["cnorm"] <= bound or errors["cnorm"] > max(1, 2 * best):
            broken.append(f"{title}, {name}: {number(errors['cnorm'])}, best peer {number(best)}")
    return lines, broken


def versions():
    found = [p(1).versions() for p in (implementations.Cnorm, *PEERS) if p.is_installed()]
    return ", ".join(f"{name} {version}" for v in found for name, version in v.items())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="DIR", help="write accuracy_table.md")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    lines, broken = table(measure())
    print("\n".join(lines))
    print(f"\nbeyond {FORWARD_BOUND} forward, {BACKWARD_BOUND} backward, or twice the best peer:")
    print("\n".join(broken) or "none")
    if args.write:
        head = ["# Largest errors", "", *__doc__.splitlines()[-3:], ""]
        head += ["Written by `python bench/accuracy.py --write docs`, with " + versions() + ".", ""]
        Path(args.write, "accuracy_table.md").write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
