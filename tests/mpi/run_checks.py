"""Run the checks under mpiexec; rank 0 writes the name of each that has passed into a file.

mpiexec -n 2 python run_checks.py passed.txt
"""

import sys
import traceback

from mpi4py import MPI
from sync_checks import CHECKS


def main(path):
    comm = MPI.COMM_WORLD
    for check in CHECKS:
        try:
            check(comm)
        except BaseException:
            print(
                f"{check.__name__}, rank {comm.Get_rank()}:\n{traceback.format_exc()}", flush=True
            )
            comm.Abort(1)  # the others may be waiting for this rank
        comm.Barrier()
        if comm.Get_rank() == 0:
            with open(path, "a") as passed:
                print(check.__name__, file=passed)


if __name__ == "__main__":
    main(sys.argv[1])
