"""Normalize a zarr data set, per channel, on a cluster of processes with little memory each.

    python examples/normalize_zarr.py                                # 40 MB, for a look
    python examples/normalize_zarr.py --gigabytes 8 --workers 4      # what does not fit into memory

It makes a data set of images of 16 bits, takes the moments of each channel, and writes the
standardized images to another store. Each step reads the data once, a chunk at a time. Statistics
travel between the processes as `cnorm.Moments` of three channels, and images never do. Then it runs
again with twice the workers, and compares the bits of all that was written. A worker that exceeds
its limit of memory is ended.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from distributed import Client, LocalCluster, progress

import cnorm.interop.dask as cd

IMAGES = 64  # of a chunk
SIZE = 128  # pixels along each side
CHANNELS = np.array([[600.0, 90.0], [900.0, 120.0], [20_000.0, 4_000.0]])  # mean and deviation
AXES = (0, 1, 2)


def make(path, gigabytes):
    """A data set of random images, channels last, of a given size before compression."""
    chunks = max(1, round(gigabytes * 1e9 / (2 * IMAGES * SIZE * SIZE * 3)))
    noise = da.random.default_rng(0).standard_normal(
        (chunks * IMAGES, SIZE, SIZE, 3), dtype=np.float32, chunks=(IMAGES, SIZE, SIZE, 3)
    )
    mean, std = CHANNELS.T.astype(np.float32)
    images = da.clip(noise * std + mean, 0, 65535).astype(np.uint16)
    return images.to_zarr(str(path), compute=False)


def peak_memory():
    """The most memory that this process ever had, in MB, where the system tells."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def wait_for(client, lazy):
    """Compute, with dask's progress bar on a terminal."""
    futures = client.compute(lazy)
    if sys.stdout.isatty():
        progress(futures)
        print()
    return client.gather(futures)


def normalize(source, target, workers, memory, gigabytes):
    """Read one store, write the other; return the moments and the seconds."""
    limits = {
        "distributed.worker.memory.target": False,  # nothing is worth spilling: chunks are few
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.8,
        "distributed.worker.memory.terminate": 0.95,
    }
    with (
        dask.config.set(limits),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        start = time.perf_counter()
        if not source.exists():
            wait_for(client, [make(source, gigabytes)])
            print(f"made in {time.perf_counter() - start:.1f} s")
            start = time.perf_counter()
        images = da.from_zarr(str(source))
        (moments,) = wait_for(client, [cd.moments(images, AXES)])
        result = cd.standardize(images, AXES, moments, dtype=np.float32)
        wait_for(client, [result.to_zarr(str(target), compute=False)])
        seconds = time.perf_counter() - start
        peaks = client.run(peak_memory)
    size = images.nbytes / 1e6
    print(
        f"{workers} worker{'s' * (workers > 1)}: {size:.0f} MB in {seconds:.1f} s, "
        f"{size / seconds:.0f} MB/s; a worker took at most {max(peaks.values()):.0f} MB of {memory}"
    )
    return moments


def digest(path):
    """A digest of all elements of a store, which is read chunk by chunk."""
    array = zarr.open_array(str(path), mode="r")
    bits = hashlib.sha256()
    for start in range(0, array.shape[0], IMAGES):
        bits.update(np.ascontiguousarray(array[start : start + IMAGES]))
    return bits.hexdigest()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=0.04, help="of the data set")
    parser.add_argument("--workers", type=int, default=1, help="of the first run")
    parser.add_argument("--memory", default="600MB", help="limit of each worker")
    parser.add_argument("--folder", help="for the stores; default: a temporary one, deleted after")
    options = parser.parse_args(arguments)
    folder = Path(options.folder or tempfile.mkdtemp())
    try:
        source = folder / "images.zarr"
        targets = [folder / f"normalized-{n}.zarr" for n in (1, 2)]
        for target in targets:
            shutil.rmtree(target, ignore_errors=True)
        moments = [
            normalize(source, target, workers, options.memory, options.gigabytes)
            for target, workers in zip(targets, (options.workers, 2 * options.workers), strict=True)
        ]
        print("mean", moments[0].mean.round(2), "std", moments[0].std().round(2))
        same = moments[0] == moments[1] and digest(targets[0]) == digest(targets[1])
        print("the bits of both runs are", "equal" if same else "DIFFERENT")
        return 0 if same else 1
    finally:
        if not options.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
