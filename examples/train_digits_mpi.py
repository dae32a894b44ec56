"""Train on handwritten digits, each batch spread over the processes of an MPI program.

The network and the digits are those of `train_digits.py`, with its BatchNorm1d synchronised. Each
rank takes a part of every batch and adds up the gradients of all ranks, so the loss follows the
same curve on any number of ranks.

    pip install -e ".[mpi,examples]"
    mpiexec -n 2 python examples/train_digits_mpi.py          # the progress is rank 0's
"""

import argparse

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm
from train_digits import NORMS, accuracy, cross_entropy, make_network

import cnorm


def my_part(batch, comm):
    """This rank's share of a batch; shares may differ by one sample, or be empty."""
    return np.array_split(batch, comm.Get_size())[comm.Get_rank()]


def add_over_ranks(arrays, comm):
    """Replace arrays by their sums over the ranks: one message for all of them."""
    mine = np.concatenate([array.reshape(-1) for array in arrays])
    total = np.empty_like(mine)
    comm.Allreduce(mine, total)
    ends = np.cumsum([array.size for array in arrays])
    for array, part in zip(arrays, np.split(total, ends[:-1]), strict=True):
        array[...] = part.reshape(array.shape)


def step(network, images, digits, comm):
    """Forward and backward of one batch; the gradients and the loss are those of all of it."""
    images, mine = my_part(images, comm), my_part(digits, comm)
    share = len(mine) / len(digits)
    loss, grad = cross_entropy(network(images), mine) if share else (0.0, np.zeros((0, 10)))
    network.zero_grad()
    network.backward((grad * share).astype(images.dtype))
    loss = np.array([loss * share])
    add_over_ranks([*(parameter.grad for parameter in network.parameters())], comm)
    add_over_ranks([loss], comm)
    return loss[0]


def train(data, comm, epochs, batch_size=64, rate=0.02, momentum=0.9):
    """Train by gradient descent with momentum; return the loss of each epoch, and the network."""
    images, digits = data
    network = make_network(NORMS["BatchNorm1d"], np.random.default_rng(0))  # alike on all ranks
    network = cnorm.SyncBatchNorm.convert_sync_batchnorm(network, comm).double()
    parameters = list(network.parameters())
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    order = np.random.default_rng(1)
    losses = []
    with tqdm(range(epochs), unit="epoch", disable=comm.Get_rank() != 0) as bar:
        for epoch in bar:
            shuffled = order.permutation(len(images))
            batches = len(images) // batch_size
            total = 0.0
            for batch in shuffled[: batches * batch_size].reshape(batches, batch_size):
                total += step(network, images[batch], digits[batch], comm)
                for parameter, velocity in zip(parameters, velocities, strict=True):
                    velocity *= momentum
                    velocity -= rate * (1 - epoch / epochs) * parameter.grad
                    parameter += velocity
            losses.append(total / batches)
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
    return losses, network


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args(argv)
    comm = MPI.COMM_WORLD

    images, digits = load_digits(return_X_y=True)
    images, test_images, digits, test_digits = train_test_split(
        images / 16, digits, test_size=1 / 3, random_state=0, stratify=digits
    )
    losses, network = train((images, digits), comm, args.epochs)
    if comm.Get_rank() == 0:
        print(f"loss of each epoch on {comm.Get_size()} ranks:")
        print(*(f"{loss:.8f}" for loss in losses), sep="\n")
        with cnorm.no_grad():  # this rank evaluates alone
            print(f"held out: {accuracy(network, test_images, test_digits):.1%}")
    return losses


if __name__ == "__main__":
    main()
