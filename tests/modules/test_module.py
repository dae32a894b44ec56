"""Module and its containers: registration, conversion, copies, text."""

import copy
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import cnorm


class Net(cnorm.Module):
    def __init__(self):
        super().__init__()
        self.norm = cnorm.BatchNorm1d(3, activation=cnorm.PReLU())
        self.scale = cnorm.Parameter(np.ones(2))
        self.register_buffer("seen", np.zeros(2), persistent=False)
        self.limit = 5

    def forward(self, x, times=1):
        return self.norm(x) * times


def test_attributes_register():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "norm.weight", "norm.bias", "norm.activation.weight",
    ]  # fmt: skip
    assert [n for n, _ in net.named_children()] == ["norm"]
    assert "seen" in dict(net.named_buffers())
    assert "seen" not in net.state_dict()
    net.scale = None
    net.seen = np.ones(4)
    assert next(n for n, _ in net.named_parameters()) == "norm.weight"
    del net.norm
    assert not list(net.parameters())
    net.norm = cnorm.Parameter(np.ones(1))
    assert [n for n, _ in net.named_parameters()] == ["norm"]


def test_before_init():
    class Forgot(cnorm.Module):
        def __init__(self):
            self.weight = cnorm.Parameter(np.ones(1))

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Forgot()


def test_call_passes_arguments_on():
    x = np.ones((2, 3), np.float32)
    assert Net()(x, times=2).shape == (2, 3)
    with pytest.raises(NotImplementedError, match='missing the required "forward"'):
        cnorm.Module()(x)
    with pytest.raises(NotImplementedError, match='missing the required "forward"'):
        cnorm.ModuleList([Net()])(x)


def test_a_subclass_may_override_forward():
    class Doubled(cnorm.LayerNorm):
        def forward(self, input):
            return super().forward(input) * 2

    class Own(cnorm.LayerNorm):
        def __call__(self, input):
            return "own"

    x = np.ones((1, 2), np.float32) * [[1, 3]]
    np.testing.assert_array_equal(Doubled(2)(x), cnorm.LayerNorm(2)(x) * 2)
    assert Own(2)(x) == "own"


def test_train_asks_the_children():
    class Frozen(cnorm.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    net = cnorm.Sequential(Frozen(2), cnorm.BatchNorm1d(2)).train()
    assert [m.training for m in net] == [False, True]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("half", np.float16), ("float", np.float32), ("double", np.float64),
        ("bfloat16", ml_dtypes.bfloat16),
    ],
)  # fmt: skip
def test_conversion(method, dtype):
    net = Net()
    shared = net.other = cnorm.LayerNorm(3)
    shared.weight = net.norm.weight
    net.norm.weight.grad = np.ones(3, np.float32)
    assert getattr(net, method)() is net
    assert {p.dtype for p in net.parameters()} == {np.dtype(dtype)}
    assert net.norm.running_var.dtype == dtype
    assert net.norm.num_batches_tracked.dtype == np.int64
    assert net.other.weight is net.norm.weight
    assert net.norm.weight.grad.dtype == dtype
    assert net.norm(np.ones((4, 3), dtype)).dtype == dtype


def test_to():
    net = Net()
    before = net.norm.weight
    assert net.to("cpu").to("float32").to(np.float32).norm.weight is before
    with pytest.raises(TypeError, match="int32"):
        net.to(np.int32)
    assert net.norm.weight is before


def test_shallow_copies_share_arrays_alone():
    net = Net()
    other = copy.copy(net)
    assert other.norm is net.norm
    other.extra = cnorm.Parameter(np.ones(1))
    del other.scale
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]


def test_a_warning_names_the_caller():
    with pytest.warns(UserWarning, match="does not match num_features") as record:
        cnorm.InstanceNorm1d(3)(np.zeros((2, 4, 5)))
    assert record[0].filename == __file__


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stand_alone(duplicate):
    net = Net()
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    net(x)
    other = duplicate(net)
    assert other.norm._kept is None
    assert repr(other) == repr(net)
    np.testing.assert_array_equal(net.norm.running_mean, other.norm.running_mean)
    other(x)
    assert (int(net.norm.num_batches_tracked), int(other.norm.num_batches_tracked)) == (1, 2)
    other.norm.weight += 1
    assert net.norm.weight[0] == 1
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in net.named_parameters()]
    other.norm.weight = None  # still registered
    assert "norm.weight" not in other.state_dict()


def test_text():
    assert repr(Net()) == (
        "Net(\n  (norm): BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True, activation=PReLU(num_parameters=1))\n)"
    )
    assert repr(cnorm.GroupNorm(1, 2, channel_axis=-1, activation=cnorm.ReLU())) == (
        "GroupNorm(1, 2, eps=1e-05, affine=True, bias=True, channel_axis=-1, activation=ReLU())"
    )
    assert repr(cnorm.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"
    assert repr(cnorm.SwitchNorm2d(3, using_bn=False)) == (
        "SwitchNorm2d(3, eps=1e-05, momentum=0.9, using_moving_average=True, using_bn=False, "
        "last_gamma=False)"
    )


@pytest.mark.parametrize("container", [cnorm.Sequential, lambda *m: cnorm.ModuleList(m)])
def test_containers(container):
    a, b, c = (cnorm.LayerNorm(n) for n in (1, 2, 3))
    net = container(a, b)
    assert list(net) == [a, b]
    assert (len(net), net[0], net[-1]) == (2, a, b)
    net.append(c).insert(0, c)
    assert list(net) == [c, a, b, c]
    assert list(net[1:3]) == [a, b]
    assert type(net[1:]) is type(net)
    net[1] = b
    del net[0]
    assert list(net) == [b, b, c]
    assert [n for n, _ in net.named_children()] == ["0", "2"]
    net.extend([a])
    assert net[3] is a
    for wrong in (4, -5):
        with pytest.raises(IndexError):
            net[wrong]
    with pytest.raises(TypeError):
        net.append("layer")


def test_sequential_with_names():
    net = cnorm.Sequential({"first": cnorm.LayerNorm(2), "then": cnorm.ReLU()})
    assert net.first is net[0]
    assert list(net.state_dict()) == ["first.weight", "first.bias"]


def test_import_brings_nothing_heavy(elsewhere):
    code = "import numpy, sys; b = set(sys.modules); import cnorm; print(*set(sys.modules) - b)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "inspect", "dataclasses", "typing", "ml_dtypes", "mpi4py", "asyncio"}
    assert "cnorm.modules.batch" in loaded
    assert not heavy & set(loaded)
