"""A call, from its arguments to the kernels: checks, errors, out=, workspace, jobs.

Each module imports those above it only:

    arrays      what is accepted, dtype codes, overlap, conversion
    checks      torch's conditions and messages
    output      out=, in place, copies, workspace
    running     running statistics
    rows        layer and rms norm
    channels    batch, instance and group norm
    switch      switch norm
    window      response norms

`functional` and `steps` have the signatures, the documentation and one call each of what is here.
"""

from .. import _dispatch, _threads  # noqa: F401  the kernels, and the limits of threads, before any call
