"""Where cnorm departs from torch on purpose: one test for each line of docs/departures.md."""

import warnings

import numpy as np
import pytest
import torch

import cnorm


def x(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def test_a_call_that_raises_counts_no_batch():
    ours, theirs = cnorm.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    for norm, bad in ((ours, x(2, 4)), (theirs, torch.ones(2, 4))):
        with pytest.raises(RuntimeError):
            norm(bad)
    assert int(ours.num_batches_tracked) == 0
    assert int(theirs.num_batches_tracked) == 1


def test_a_load_that_fails_changes_nothing():
    ours, theirs = cnorm.LayerNorm(3), torch.nn.LayerNorm(3)
    state = {"weight": np.full(3, 7.0, np.float32), "bias": np.zeros(4, np.float32)}
    with pytest.raises(RuntimeError):
        ours.load_state_dict(state)
    with pytest.raises(RuntimeError):
        theirs.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    assert ours.weight[0] == 1
    assert theirs.weight[0] == 7


def test_instance_norm_whose_tracking_is_switched_off():
    ours, theirs = (lib.InstanceNorm1d(3, track_running_stats=True) for lib in (cnorm, torch.nn))
    ours.track_running_stats = theirs.track_running_stats = False
    batch = x(2, 3, 5)
    ours(batch)
    theirs(torch.from_numpy(batch))
    assert not ours.running_mean.any()
    assert theirs.running_mean.any()
    ours.eval()
    np.testing.assert_allclose(ours(batch), batch, rtol=1e-4)  # by the buffers: mean 0, var 1


def test_lazy_module_is_plain_after_a_load():
    ours, theirs = cnorm.LazyBatchNorm1d(), torch.nn.LazyBatchNorm1d()
    state = torch.nn.BatchNorm1d(3).state_dict()
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    assert (type(ours), ours.num_features) == (cnorm.BatchNorm1d, 3)
    assert (type(theirs), theirs.num_features) == (torch.nn.LazyBatchNorm1d, 0)


def test_lazy_module_materialises_all_that_a_load_leaves():
    ours = cnorm.LazyBatchNorm1d()
    ours.load_state_dict({"weight": np.full(3, 5.0)}, strict=False)
    assert ours(x(2, 3)).shape == (2, 3)
    assert (ours.weight == 5).all()
    theirs = torch.nn.LazyBatchNorm1d()
    theirs.load_state_dict({"weight": torch.full((3,), 5.0)}, strict=False)
    with pytest.raises(AssertionError):
        theirs(torch.ones(2, 3))


def test_lazy_module_that_holds_nothing_learns_its_features():
    ours, theirs = (
        lib.LazyBatchNorm1d(affine=False, track_running_stats=False) for lib in (cnorm, torch.nn)
    )
    ours(x(2, 3))
    theirs(torch.ones(2, 3))
    assert (ours.num_features, theirs.num_features) == (3, 0)


def test_lazy_instance_norm_of_one_sample():
    ours, theirs = cnorm.LazyInstanceNorm1d(), torch.nn.LazyInstanceNorm1d()
    ours(x(3, 5))
    assert ours.num_features == 3
    with pytest.raises(ValueError, match="to match num_features"):
        theirs(torch.ones(3, 5))


def test_a_first_call_that_raises_leaves_a_lazy_module_lazy():
    ours = cnorm.LazyBatchNorm1d()
    with pytest.raises(ValueError, match="more than 1 value"):
        ours(x(1, 3))
    assert type(ours) is cnorm.LazyBatchNorm1d
    assert ours.has_uninitialized_params()
    assert ours(x(2, 4)).shape == (2, 4)


def test_lazy_classes_are_plain_ones_too():
    assert issubclass(cnorm.LazyBatchNorm2d, cnorm.BatchNorm2d)
    assert not issubclass(torch.nn.LazyBatchNorm2d, torch.nn.BatchNorm2d)


def test_a_lazy_parameter_is_replaced():
    ours, theirs = cnorm.LazyBatchNorm1d(), torch.nn.LazyBatchNorm1d()
    before = ours.weight, theirs.weight
    ours(x(2, 3))
    theirs(torch.ones(2, 3))
    assert before[0] is not ours.weight
    assert before[1] is theirs.weight


def test_conversion_makes_new_parameters():
    ours, theirs = cnorm.LayerNorm(3), torch.nn.LayerNorm(3)
    before = ours.weight, theirs.weight
    assert ours.double().weight is not before[0]
    assert theirs.double().weight is before[1]


def test_integers_are_a_type_error():
    for name, shape in (("LayerNorm", (2, 3)), ("BatchNorm1d", (2, 3)), ("GroupNorm", (2, 3))):
        arguments = (1, 3) if name == "GroupNorm" else (3,)
        with pytest.raises(TypeError, match="int64"):
            getattr(cnorm, name)(*arguments)(np.ones(shape, np.int64))
    with pytest.raises(TypeError, match="int64"):
        cnorm.LayerNorm(3, dtype=np.int64)
    with pytest.raises(RuntimeError):
        torch.nn.LayerNorm(3, dtype=torch.int64)


def test_dtypes_mix():
    """Parameters and input may differ; the result has the input's dtype."""
    assert cnorm.BatchNorm1d(3, dtype=np.float32)(x(4, 3, dtype=np.float64)).dtype == np.float64
    assert cnorm.LayerNorm(3, dtype=np.float64)(x(4, 3)).dtype == np.float32
    with pytest.raises(RuntimeError):
        torch.nn.LayerNorm(3, dtype=torch.float32)(torch.ones(4, 3, dtype=torch.float64))


def test_device():
    assert cnorm.LayerNorm(3, device="cpu").weight.shape == (3,)
    assert cnorm.LayerNorm(3, device=torch.device("cpu")).weight.shape == (3,)
    for device in ("cuda", "meta", 0):
        with pytest.raises(ValueError, match="device must be None or 'cpu'"):
            cnorm.LayerNorm(3, device=device)


def test_cross_map_lrn_has_the_gradient_of_its_forward():
    ours, theirs = (lib.CrossMapLRN2d(3, 0.5, 0.75, 2.0) for lib in (cnorm, torch.nn))
    at, grad = x(1, 4, 1, 1, dtype=np.float64), x(1, 4, 1, 1, dtype=np.float64)
    ours(at)
    step = 1e-6 * np.eye(4).reshape(4, 1, 4, 1, 1)
    expected = [((ours(at + d) - ours(at - d)) * grad).sum() / 2e-6 for d in step]
    ours(at)
    np.testing.assert_allclose(ours.backward(grad).ravel(), expected, rtol=1e-7)
    their_at = torch.from_numpy(at).requires_grad_()
    theirs(their_at).backward(torch.from_numpy(grad))
    assert np.abs(their_at.grad.numpy().ravel() - expected).max() > 1e-3


def test_cross_map_lrn_of_size_1_runs_backward():
    ours, theirs = (lib.CrossMapLRN2d(1) for lib in (cnorm, torch.nn))
    ours(x(1, 2, 3, 3))
    assert ours.backward(x(1, 2, 3, 3)).shape == (1, 2, 3, 3)
    with pytest.raises(RuntimeError):
        theirs(torch.ones(1, 2, 3, 3, requires_grad=True)).sum().backward()


def test_an_empty_array_of_other_channels():
    ours, theirs = cnorm.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    with pytest.raises(RuntimeError, match="should contain 0 elements not 3"):
        ours(x(2, 0))
    assert theirs(torch.ones(2, 0)).shape == (2, 0)


def test_empty_batch_of_a_tracking_instance_norm():
    ours, theirs = (
        lib.InstanceNorm2d(3, affine=True, track_running_stats=True) for lib in (cnorm, torch.nn)
    )
    assert ours(x(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert not ours.running_mean.any()
    with pytest.raises(IndexError):
        theirs(torch.ones(0, 3, 2, 2))


def test_instance_norm_of_other_channels_names_their_number():
    ours, theirs = (lib.InstanceNorm1d(3, track_running_stats=True) for lib in (cnorm, torch.nn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="should contain 4 elements not 3"):
            ours(x(2, 4, 5))
        with pytest.raises(RuntimeError, match="should contain 8 elements not 6"):
            theirs(torch.ones(2, 4, 5))


def test_large_means_keep_their_digits():
    batch = (x(64, 256) + 1e4).astype(np.float32)
    exact = torch.nn.functional.layer_norm(torch.from_numpy(batch).double(), (256,)).numpy()
    ours = cnorm.LayerNorm(256)(batch)
    theirs = torch.nn.LayerNorm(256)(torch.from_numpy(batch)).detach().numpy()
    assert np.abs(ours - exact).max() < 2e-6
    assert np.abs(theirs - exact).max() > 1e-4


def test_an_infinite_unit_spoils_no_other():
    batch = x(2, 4)
    batch[0, 0] = np.inf
    y = cnorm.LayerNorm(4)(batch)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


def test_backward_is_a_method_and_serves_once():
    norm = cnorm.LayerNorm(3)
    y = norm(x(2, 3))
    norm.backward(y)
    with pytest.raises(RuntimeError, match="once for each backward"):
        norm.backward(y)


def test_gradients_are_new_arrays():
    norm, theirs = cnorm.LayerNorm(3), torch.nn.LayerNorm(3)
    grads = []
    for _ in range(2):
        norm.backward(norm(x(2, 3)))
        theirs(torch.from_numpy(x(2, 3))).sum().backward()
        grads.append((norm.weight.grad, theirs.weight.grad))
    assert grads[0][0] is not grads[1][0]
    assert grads[0][1] is grads[1][1]


def test_what_there_is_not():
    for name in ("cuda", "register_forward_hook", "share_memory", "compile"):
        assert hasattr(torch.nn.Module, name)
        assert not hasattr(cnorm.Module, name)
    with pytest.raises(TypeError):
        cnorm.LayerNorm(3).load_state_dict({}, assign=True)


def test_sizes_print_as_lists():
    for lib, batch, words in (
        (cnorm, x(1, 3), r"got input size \[1, 3\]"),
        (torch.nn, torch.ones(1, 3), r"got input size torch.Size\(\[1, 3\]\)"),
    ):
        with pytest.raises(ValueError, match=words):
            lib.BatchNorm1d(3)(batch)


def test_too_few_dimensions_are_one_error():
    for norm in (cnorm.LayerNorm((4, 3)), cnorm.RMSNorm((4, 3)), torch.nn.LayerNorm((4, 3))):
        batch = x(3) if isinstance(norm, cnorm.Module) else torch.ones(3)
        with pytest.raises(RuntimeError, match=r"expected input with shape \[\*, 4, 3\]"):
            norm(batch)
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        torch.nn.RMSNorm((4, 3))(torch.ones(3))


def test_no_groups_are_named():
    for theirs in (
        lambda: torch.nn.GroupNorm(0, 6),
        lambda: torch.nn.functional.group_norm(torch.ones(2, 6), 0),
    ):
        with pytest.raises(ZeroDivisionError):
            theirs()
    torch.nn.GroupNorm(-2, 6)
    for none in (0, -2):
        with pytest.raises(ValueError, match=f"num_groups must be a positive integer, .* {none}$"):
            cnorm.GroupNorm(none, 6)
    with pytest.raises(RuntimeError, match="Expected num groups to be greater than 0, got 0"):
        cnorm.functional.group_norm(x(2, 6), 0)


def test_one_running_statistic():
    norm = cnorm.BatchNorm1d(3)
    norm.running_var = None
    with pytest.raises(ValueError, match="must either both be None or neither be None"):
        norm(x(2, 3))


def test_evaluation_records_only_when_asked():
    ours, theirs = cnorm.LayerNorm(3).eval(), torch.nn.LayerNorm(3).eval()
    theirs(torch.ones(2, 3)).sum().backward()
    y = ours(x(2, 3))
    with pytest.raises(RuntimeError, match="no forward pass to go back through"):
        ours.backward(y)
    with cnorm.enable_grad():
        y = ours(x(2, 3))
    assert ours.backward(y).shape == (2, 3)
