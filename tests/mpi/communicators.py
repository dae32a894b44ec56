"""Communicators for tests: ranks that are threads, and one that records what is called."""

import threading

import numpy as np


class ThreadComm:
    """The rank of a thread among those of one process; as much of mpi4py as the checks use."""

    def __init__(self, rank, size, meeting):
        self.rank = rank
        self.size = size
        self.meeting = meeting

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size

    def allgather(self, value):
        return self.meeting.exchange(self.rank, value)

    def Allgather(self, send, recv):
        rows = self.allgather(send.copy())
        assert {row.size for row in rows} == {send.size}, "messages of different lengths"
        recv[...] = np.reshape(rows, recv.shape)

    def Split(self, color):
        colors = self.allgather(color)
        members = [rank for rank, other in enumerate(colors) if other == color]
        meetings = self.allgather(Meeting(len(members)))
        return ThreadComm(members.index(self.rank), len(members), meetings[members[0]])


class Meeting:
    """Where the threads of a communicator leave a value each, and take those of all."""

    def __init__(self, size, seconds=30):
        self.values = [None] * size
        self.barrier = threading.Barrier(size, timeout=seconds)

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()  # nobody writes the next value before all have read this one
        return values


def on_threads(size, function):
    """Run ``function(comm)`` on `size` ranks; what each returned, or raised."""
    meeting = Meeting(size)
    results = [None] * size

    def run(rank):
        try:
            results[rank] = function(ThreadComm(rank, size, meeting))
        except BaseException as error:
            results[rank] = error
            meeting.barrier.abort()  # the others need not wait for this one

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Recording:
    """A communicator that notes the collectives it is asked for, and the bytes sent."""

    def __init__(self, comm):
        self.comm = comm
        self.calls = []

    def Get_rank(self):
        return self.comm.Get_rank()

    def Get_size(self):
        return self.comm.Get_size()

    def Allgather(self, send, recv):
        self.calls.append(("Allgather", send.nbytes))
        self.comm.Allgather(send, recv)

    def Allreduce(self, send, recv):
        self.calls.append(("Allreduce", send.nbytes))
        self.comm.Allreduce(send, recv)
