"""xarray's arrays: labels stay, and dask's stay lazy."""

import numpy as np
import pytest

pytest.importorskip("xarray", reason="the extra [xarray] brings xarray")

import xarray as xr

import cnorm
import cnorm.functional as F
import cnorm.interop.xarray as cx


@pytest.fixture
def array(rng):
    return xr.DataArray(
        rng.normal(280, 5, (6, 4, 3)).astype(np.float32),
        {"time": np.arange(6), "lat": list("abcd"), "height": ("time", np.arange(6) * 2.0)},
        ["time", "lat", "lon"],
        "temperature",
        {"units": "K"},
    )


DIMS = [("time", 0), (["lon", "time"], (0, 2)), (..., (0, 1, 2)), (None, (0, 1, 2))]


@pytest.mark.parametrize("chunks", [None, {"time": 2, "lat": 3}], ids=["memory", "dask"])
@pytest.mark.parametrize(("dim", "axis"), DIMS, ids=str)
def test_moments_and_standardize(array, dim, axis, chunks):
    want = F.standardize(array.values, axis, clip=(-1, 2))
    m = cx.moments(array, dim)
    assert m == F.moments(array.values, axis)
    array.encoding = {"dtype": "int16", "scale_factor": 0.1}
    if chunks:
        pytest.importorskip("dask.array")
        array = array.chunk(chunks)
        lazy = cx.moments(array, dim)
        np.testing.assert_allclose(lazy.compute().mean, m.mean, rtol=1e-14)
    for moments in (None, m):
        z = cx.standardize(array, dim, moments, clip=(-1, 2))
        assert (z.chunks == array.chunks) and (chunks is None) == (z.chunks is None)
        assert z.dims == array.dims and z.name == "temperature" and z.attrs == {"units": "K"}
        assert set(z.coords) == {"time", "lat", "height"} and z.encoding == {}
        np.testing.assert_allclose(z.values, want, rtol=0, atol=1e-5)


def test_a_mask_is_matched_by_name(array):
    mask = xr.DataArray(np.array([[True, False, True, True]] * 3), dims=["lon", "lat"])
    plain = np.broadcast_to(mask.values.T, array.shape)
    assert cx.moments(array, "time", where=mask) == F.moments(array.values, 0, where=plain)
    z = cx.standardize(array, "time", where=mask)
    np.testing.assert_array_equal(z.values, F.standardize(array.values, 0, where=plain))
    given = cx.standardize(array, "time", cx.moments(array, "time"), where=mask)
    np.testing.assert_allclose(given.values, np.where(plain, z.values, 0), atol=1e-5)


def test_errors(array):
    other = xr.DataArray([True, False], dims=["depth"])
    late = (array > 0).isel(time=slice(2, None))
    for call, kind, said in [
        (lambda: cx.moments(array, "depth"), ValueError, "depth"),
        (lambda: cx.moments(array.values, "time"), TypeError, "expected a DataArray"),
        (lambda: cx.standardize(array.to_dataset(), "time"), TypeError, r"ds\.map"),
        (lambda: cx.standardize(array, "time", cnorm.Moments()), ValueError, "must be over"),
        (lambda: cx.standardize(array, "time", F.moments(array, 1)), ValueError, "must be over"),
        (lambda: cx.standardize(array, "time", 3), TypeError, "moments must be Moments"),
        (lambda: cx.moments(array, where=other), ValueError, "does not have: "),
        (lambda: cx.moments(array, where=late), ValueError, "time"),
    ]:
        with pytest.raises(kind, match=said):
            call()
