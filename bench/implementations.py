"""cnorm and what a user would otherwise run, each behind the same two steps.

An implementation is made with a number of threads; its `prepare(case)` makes the arrays, does
everything that a user does once, and returns a function of no arguments: the call to time.
Where an implementation cannot run a case, `prepare` raises; the comparison then shows a dash.
"""

import importlib.util
import os
import timeit

import numpy as np
from cases import ROWS, arrays

EPS = 1e-5


def bound(function, *arguments, **keywords):
    """Return the call, written out, as a function of nothing: `partial` copies its keywords."""
    names = {f"argument{i}": value for i, value in enumerate(arguments)} | keywords
    text = [*list(names)[: len(arguments)], *(f"{name}={name}" for name in keywords)]
    names["function"] = function
    text = f"function({', '.join(text)})"
    call = eval(f"lambda: {text}", names)
    call.statement = text, names
    return call


def timer(call):
    """Return a timer of a call; of what `bound` wrote out, without the function around it."""
    text, names = getattr(call, "statement", ("call()", {"call": call}))
    return timeit.Timer(text, globals=names)


class Unsupported(Exception):
    """This implementation has no such operation."""


class Implementation:
    name = ""
    needs = ()  # modules that must be installed

    def __init__(self, threads):
        self.threads = threads

    @classmethod
    def is_installed(cls):
        return all(importlib.util.find_spec(module) for module in cls.needs)

    def versions(self):
        return {module: getattr(__import__(module), "__version__", "?") for module in self.needs}


# --- cnorm -----------------------------------------------------------------------------------


class Cnorm(Implementation):
    """A call as one writes it, the result in a new array."""

    name = "cnorm"
    needs = ("cnorm",)
    with_out = False

    def __init__(self, threads):
        super().__init__(threads)
        import cnorm

        self.cnorm = cnorm
        cnorm.set_num_threads(threads)

    def prepare(self, case):
        import cnorm.functional as F

        if not hasattr(F, case.op):
            raise Unsupported(case.op)
        a = arrays(case)
        out = {"out": np.ones_like(a["x"])} if self.with_out else {}
        if case.module:
            return self._module(case, a)
        if case.op in ROWS:
            return self._rows(F, case, a, out)
        axis = {} if case.channel_axis == 1 else {"channel_axis": case.channel_axis}
        clip = {"clip": (0.0, 6.0)} if case.clip else {}
        return self._channels(F, case, a, out | axis | clip)

    def _module(self, case, a):
        if self.with_out or case.op != "layer_norm":
            raise Unsupported("modules allocate their result")
        layer = self.cnorm.LayerNorm(case.parameter_size)
        layer.eval()
        return bound(layer, a["x"])

    def _rows(self, F, case, a, out):
        x, weight, bias, shape = a["x"], a["weight"], a["bias"], (case.parameter_size,)
        forward, backward = getattr(F, case.op), getattr(F, f"{case.op}_backward")
        parameters = (weight,) if "rms" in case.op else (weight, bias)
        inputs = (x, a["residual"]) if case.op.startswith("add_") else (x,)
        axis = {} if case.axis == -1 else {"axis": case.axis}
        out = out | axis
        if case.direction == "forward":
            if len(inputs) == 2 and out:
                out["residual_out"] = np.ones_like(x)
            return bound(forward, *inputs, shape, *parameters, **out)
        _, *kept = forward(*inputs, shape, *parameters, return_stats=True, **axis)
        if len(inputs) == 2:
            s, *stats = kept
            return bound(backward, a["dy"], None, s, shape, *stats, weight, **out)
        return bound(backward, a["dy"], x, shape, *kept, weight, **out)

    def _channels(self, F, case, a, keywords):
        x, weight, bias = a["x"], a["weight"], a["bias"]
        forward, backward = getattr(F, case.op), getattr(F, f"{case.op}_backward")
        if case.op == "normalize":
            keywords = {"dim": keywords.pop("channel_axis", 1), **keywords}
            if case.direction == "forward":
                return bound(forward, x, **keywords)
            norm = forward(x, dim=keywords["dim"], return_stats=True)[1]
            return bound(backward, a["dy"], x, norm, **keywords)
        mixes = (np.ones(min(x.ndim, 3), np.float32),) * 2
        first = {
            "batch_norm": (a["running_mean"], a["running_var"], weight, bias, case.training),
            "instance_norm": (None, None, weight, bias),
            "group_norm": (case.groups, weight, bias),
            "local_response_norm": (case.size,),
            "switch_norm": (a["running_mean"], a["running_var"], weight, bias, *mixes, True),
        }[case.op]
        if case.direction == "forward":
            return bound(forward, x, *first, **keywords)
        dy = a["dy"]
        if case.op == "local_response_norm":
            return bound(backward, dy, x, case.size, **keywords)
        _, *kept = forward(x, *first, return_stats=True, channel_axis=case.channel_axis)
        if case.op == "switch_norm":
            return bound(backward, dy, x, *kept, weight, *mixes, bias, **keywords)
        mean, rstd = kept
        if case.clip:
            keywords["bias"] = bias
        if case.op == "group_norm":
            return bound(backward, dy, x, case.groups, mean, rstd, weight, **keywords)
        if case.op == "batch_norm":
            keywords["training"] = case.training
        return bound(backward, dy, x, mean, rstd, weight, **keywords)


class CnormOut(Cnorm):
    """cnorm with `out=`: the result goes into memory already mapped."""

    name = "cnorm out="
    with_out = True


# --- the formula, for NumPy and JAX -------------------------------------------------------------


def formula(xp, case):
    """Return f(x, weight, bias, running_mean, running_var, residual) written with `xp`."""
    last = case.layout == "last"
    after = 0 if last else len(case.shape) - 2  # axes after that of the channels
    if case.op in ROWS:
        after = -1 - case.axis if case.axis < 0 else len(case.shape) - 1 - case.axis
    parameter_shape = (-1,) + (1,) * after
    if case.each:
        parameter_shape = case.parameter_shape + (1,) * after
        if case.op in ROWS:
            parameter_shape = case.parameter_shape
        elif last:
            parameter_shape = (case.shape[0], *(1,) * (len(case.shape) - 2), case.shape[1])
    running_shape = (-1,) + (1,) * after

    def apply(x, mean, var, weight, bias):
        weight, bias = weight.reshape(parameter_shape), bias.reshape(parameter_shape)
        return (x - mean) / xp.sqrt(var + EPS) * weight + bias

    def over(x, axes, weight, bias):
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return apply(x, mean, var, weight, bias)

    def switch(x, axis, spatial, weight, bias):
        if x.ndim == 2:
            mean = (x.mean(1, keepdims=True) + x.mean(0, keepdims=True)) / 2
            var = (x.var(1, keepdims=True, ddof=1) + x.var(0, keepdims=True, ddof=1)) / 2
            return apply(x, mean, var, weight, bias)
        mean, var = x.mean(spatial, keepdims=True), x.var(spatial, keepdims=True, ddof=1)
        square = var + mean * mean
        means, variances = [mean], [var]
        for over in (axis, 0):
            means.append(mean.mean(over, keepdims=True))
            variances.append(square.mean(over, keepdims=True) - means[-1] ** 2)
        return apply(x, sum(means) / 3, sum(variances) / 3, weight, bias)

    def rms(x, weight):
        mean = (x * x).mean(case.axis, keepdims=True)
        return x / xp.sqrt(mean + EPS) * weight.reshape(parameter_shape)

    def channels(x, weight, bias, running_mean, running_var):
        axis = x.ndim - 1 if last else 1
        spatial = tuple(i for i in range(1, x.ndim) if i != axis)
        if case.op == "batch_norm":
            if case.training:
                return over(x, (0, *spatial), weight, bias)
            stats = running_mean.reshape(running_shape), running_var.reshape(running_shape)
            return apply(x, *stats, weight, bias)
        if case.op == "instance_norm":
            return over(x, spatial, weight, bias)
        if case.op == "switch_norm":
            return switch(x, axis, spatial, weight, bias)
        if case.op == "group_norm":
            split = (*x.shape[:axis], case.groups, x.shape[axis] // case.groups)
            g = x.reshape(split + x.shape[axis + 1 :])
            axes = tuple(i for i in range(1, g.ndim) if i != axis)
            mean, var = g.mean(axes, keepdims=True), g.var(axes, keepdims=True)
            y = ((g - mean) / xp.sqrt(var + EPS)).reshape(x.shape)
            return y * weight.reshape(parameter_shape) + bias.reshape(parameter_shape)
        before = case.size // 2
        pad = [(0, 0)] * x.ndim
        pad[axis] = (before, case.size - 1 - before)
        square, count = xp.pad(x * x, pad), x.shape[axis]
        window = [slice(None)] * axis
        total = sum(square[(*window, slice(i, i + count))] for i in range(case.size))
        return x / (1.0 + 1e-4 / case.size * total) ** 0.75

    def normalize(x):
        axis = x.ndim - 1 if last else 1
        return x / xp.maximum(xp.linalg.norm(x, axis=axis, keepdims=True), 1e-12)

    def f(x, weight, bias, running_mean, running_var, residual=None):
        dtype = x.dtype
        if case.dtype in ("float16", "bfloat16"):
            x, weight, bias = (v.astype(xp.float32) for v in (x, weight, bias))
            running_mean, running_var = (v.astype(xp.float32) for v in (running_mean, running_var))
        if residual is not None:
            x = x + residual
        if case.op in ROWS:
            y = rms(x, weight) if "rms" in case.op else over(x, (case.axis,), weight, bias)
        elif case.op == "normalize":
            y = normalize(x)
        else:
            y = channels(x, weight, bias, running_mean, running_var)
        if case.clip:
            y = xp.clip(y, 0, 6)
        y = y.astype(dtype)
        return y if residual is None else (y, x.astype(dtype))

    return f


class NumPy(Implementation):
    """The formula, in the dtype of the input."""

    name = "NumPy"
    needs = ("numpy",)

    def prepare(self, case):
        a = arrays(case)
        if case.op == "np.add":
            x, y, out = a["x"], a["x"].copy(), np.ones_like(a["x"])
            return bound(np.add, x, y, out=out)
        if case.direction == "backward":
            raise Unsupported("NumPy has no gradients")
        f = formula(np, case)
        return bound(f, **a)


class Jax(Implementation):
    """The formula under `jax.jit`; backward is the jitted vjp alone."""

    name = "JAX"
    needs = ("jax",)

    def prepare(self, case):
        import jax
        import jax.numpy as jnp

        if case.op == "np.add":
            raise Unsupported(case.op)
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        a = {name: jax.device_put(value) for name, value in arrays(case).items()}
        dy = a.pop("dy", None)
        f = formula(jnp, case)
        if case.direction == "forward":
            compiled = jax.jit(lambda a: f(**a))
            return lambda: jax.block_until_ready(compiled(a))
        fixed = {name: a.pop(name) for name in ("running_mean", "running_var")}
        y, vjp = jax.vjp(jax.jit(lambda a: f(**a, **fixed)), a)
        if isinstance(y, tuple):
            dy = (dy, jnp.zeros_like(dy))
        compiled = jax.jit(lambda vjp, dy: vjp(dy))
        return lambda: jax.block_until_ready(compiled(vjp, dy))


# --- torch --------------------------------------------------------------------------------------


class Torch(Implementation):
    """torch eager: the function; backward is `torch.autograd.grad` through a kept graph."""

    name = "torch"
    needs = ("torch",)

    def __init__(self, threads):
        super().__init__(threads)
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def tensor(self, case, array):
        if case.dtype == "bfloat16":
            tensor = self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        else:
            tensor = self.torch.from_numpy(array)
        if case.layout == "last" and tensor.ndim > 2:
            tensor = tensor.movedim(-1, 1)  # (N, C, *S) again, channels last in memory
        return tensor

    def forward(self, case):
        F = self.torch.nn.functional
        shape = (case.parameter_size,)

        def rows(x, weight, bias):
            if case.op == "layer_norm":
                return F.layer_norm(x, shape, weight, bias)
            return F.rms_norm(x, shape, weight)

        def modulated(x, weight, bias):
            """A norm without parameters, then those of each sample, as networks have it."""
            match case.op:
                case "batch_norm":
                    y = F.batch_norm(x, None, None, None, None, True)
                case "instance_norm":
                    y = F.instance_norm(x)
                case "group_norm":
                    y = F.group_norm(x, case.groups)
                case _:
                    y = rows(x.movedim(case.axis, -1), None, None).movedim(-1, case.axis)
                    y = y * weight
                    return y if case.op == "rms_norm" else y + bias
            spatial = (1,) * (x.ndim - 2)
            return y * weight.reshape(*weight.shape, *spatial) + bias.reshape(*bias.shape, *spatial)

        def f(x, weight, bias, running_mean, running_var, residual=None):
            if residual is not None:
                x = x + residual
            if case.each:
                return modulated(x, weight, bias)
            if case.axis != -1:
                return rows(x.movedim(case.axis, -1), weight, bias).movedim(-1, case.axis)
            match case.op:
                case "layer_norm" | "add_layer_norm":
                    y = F.layer_norm(x, shape, weight, bias)
                case "rms_norm" | "add_rms_norm":
                    y = F.rms_norm(x, shape, weight)
                case "batch_norm":
                    y = F.batch_norm(x, running_mean, running_var, weight, bias, case.training)
                case "instance_norm":
                    y = F.instance_norm(x, weight=weight, bias=bias)
                case "group_norm":
                    y = F.group_norm(x, case.groups, weight, bias)
                case "local_response_norm":
                    y = F.local_response_norm(x, case.size)
                case "normalize":
                    y = F.normalize(x)
                case _:
                    raise Unsupported(case.op)
            if case.clip:
                y = F.relu6(y)
            return y if residual is None else (y, x)

        return f

    def _compiled(self, f):
        return f

    def prepare(self, case):
        if case.op in ("np.add", "switch_norm"):
            raise Unsupported(case.op)
        torch = self.torch
        torch.set_grad_enabled(case.direction == "backward")
        a = {name: self.tensor(case, v) for name, v in arrays(case).items()}
        dy = a.pop("dy", None)
        f = self._compiled(self.forward(case))
        if case.direction == "backward":
            wanted = [v.requires_grad_() for n, v in a.items() if not n.startswith("running")]
            y = f(**a)
            y = y[0] if isinstance(y, tuple) else y
            return bound(torch.autograd.grad, y, wanted, dy, retain_graph=True, allow_unused=True)
        if case.module:
            layer = self._compiled(torch.nn.LayerNorm(case.parameter_size))
            return bound(layer, a["x"])
        plain = case.axis == -1 and not case.each
        if case.op in ROWS and "residual" not in a and plain:
            return self._short(case, a)
        return bound(f, **a)

    def _short(self, case, a):
        """The call without `forward` around it: no more Python than a user would run."""
        F, shape = self.torch.nn.functional, (case.parameter_size,)
        x, weight, bias = a["x"], a["weight"], a["bias"]
        if case.op == "layer_norm":
            call = self._compiled(lambda x, w, b: F.layer_norm(x, shape, w, b))
            return bound(call, x, weight, bias)
        call = self._compiled(lambda x, w: F.rms_norm(x, shape, w))
        return bound(call, x, weight)


class TorchCompile(Torch):
    """The functions of torch through `torch.compile`."""

    name = "torch.compile"

    def _compiled(self, f):
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False  # so that a graph runs backward again
        self.torch._dynamo.reset()
        return self.torch.compile(f, dynamic=False)

    def prepare(self, case):
        call = super().prepare(case)
        call()  # compiles
        return call


# --- onnxruntime ----------------------------------------------------------------------------------


class OnnxRuntime(Implementation):
    """A model of one node (two with ReLU6), its input and output bound beforehand."""

    name = "onnxruntime"
    needs = ("onnxruntime", "onnx")

    def model(self, case, a):
        """Return the inputs by name, and the model as bytes."""
        import onnx

        if case.direction == "backward" or case.layout == "last" or case.dtype == "bfloat16":
            raise Unsupported("forward, channels first")
        if case.axis != -1 or case.each:
            raise Unsupported("the last axis, parameters of all samples")
        inputs, node, opset = self._node(onnx.helper, case, a)
        kind = onnx.helper.np_dtype_to_tensor_dtype(a["x"].dtype)
        value_info = [
            onnx.helper.make_tensor_value_info(name, kind, array.shape)
            for name, array in inputs.items()
        ]
        result = onnx.helper.make_tensor_value_info("y", kind, case.shape)
        nodes, bounds = [node], []
        if case.clip:
            node.output[0] = "z"
            nodes.append(onnx.helper.make_node("Clip", ["z", "low", "high"], ["y"]))
            bounds = [
                onnx.helper.make_tensor(n, kind, (), [b]) for n, b in (("low", 0), ("high", 6))
            ]
        graph = onnx.helper.make_graph(nodes, "norm", value_info, [result], bounds)
        opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return inputs, model.SerializeToString()

    def session(self, model):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def prepare(self, case):
        import onnxruntime as ort

        a = arrays(case)
        inputs, model = self.model(case, a)
        session = self.session(model)
        # a value made from an array is that array's memory: the output is one of its own
        given = (*inputs.values(), np.empty_like(a["x"]))
        self.kept = [ort.OrtValue.ortvalue_from_numpy(v) for v in given]
        binding = session.io_binding()
        for name, value in zip(inputs, self.kept, strict=False):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("y", self.kept[-1])
        return bound(session.run_with_iobinding, binding)

    def _node(self, helper, case, a):
        """Return the inputs by name, the node, and the opset that has it."""
        rms = {"x": a["x"], "weight": a["weight"]}
        affine = rms | {"bias": a["bias"]}
        running = {"mean": a["running_mean"], "var": a["running_var"]}
        residual = {"residual": a.get("residual")}
        match case.op:
            case "layer_norm":
                inputs, kind, options, opset = affine, "LayerNormalization", {"axis": -1}, 17
            case "rms_norm":
                inputs, kind, options, opset = rms, "RMSNormalization", {"axis": -1}, 23
            case "batch_norm" if not case.training:
                inputs, kind, options, opset = affine | running, "BatchNormalization", {}, 15
            case "instance_norm":
                inputs, kind, options, opset = affine, "InstanceNormalization", {}, 6
            case "group_norm":
                options = {"num_groups": case.groups}
                inputs, kind, opset = affine, "GroupNormalization", 21
            case "local_response_norm":
                inputs, kind, options, opset = {"x": a["x"]}, "LRN", {"size": case.size}, 13
            case "add_layer_norm" | "add_rms_norm":
                kind = "SkipLayerNormalization"
                inputs = {"x": a["x"]} | residual | affine
                if case.op == "add_rms_norm":
                    kind, inputs = "SkipSimplifiedLayerNormalization", {"x": a["x"]} | residual
                    inputs |= {"weight": a["weight"]}
                options, opset = {"domain": "com.microsoft"}, 17
            case _:
                raise Unsupported(case.op)
        if kind != "LRN":
            options = {"epsilon": EPS} | options
        outputs = ["y", "", "", "sum"] if case.op.startswith("add_") else ["y"]
        return inputs, helper.make_node(kind, list(inputs), outputs, **options), opset


# --- the floor ------------------------------------------------------------------------------------


class Copy(Implementation):
    """What memory allows: forward copies the bytes, backward adds two arrays into a third.

    In parallel through torch where it is installed, else through NumPy in threads.
    """

    name = "copy"

    def prepare(self, case):
        if case.op == "np.add":
            raise Unsupported(case.op)
        count = max(1, case.nbytes // 4)
        a, b, out = (np.ones(count, np.float32) for _ in range(3))
        backward = case.direction == "backward"
        if importlib.util.find_spec("torch"):
            import torch

            torch.set_num_threads(self.threads)
            ta, tb, tout = map(torch.from_numpy, (a, b, out))
            return bound(torch.add, ta, tb, out=tout) if backward else bound(tout.copy_, ta)
        return self._numpy(a, b, out, backward)

    def _numpy(self, a, b, out, backward):
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(self.threads)
        parts = [np.array_split(v, self.threads) for v in (a, b, out)]

        def part(a, b, out):
            if backward:
                np.add(a, b, out=out)
            else:
                np.copyto(out, a)

        if self.threads == 1 or a.nbytes < 2**18:
            return bound(part, a, b, out)
        return lambda: list(pool.map(part, *parts))


ALL = (Cnorm, CnormOut, Torch, TorchCompile, OnnxRuntime, Jax, NumPy, Copy)
BY_NAME = {implementation.name: implementation for implementation in ALL}
PEERS = tuple(i.name for i in (Torch, TorchCompile, OnnxRuntime, Jax, NumPy))


def available_threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
