"""Every operation of `cnorm.functional` in plain NumPy and float64: the oracle of the tests.

Same names, arguments and results as the compiled functions, written for the reader: nothing is
fused or blocked, nothing is checked beyond what the mathematics needs. Inputs are widened to
float64 (a longdouble input computes in longdouble); results are rounded once, to the dtype of
the input. Each norm is a view of the input, the axes of a unit, and the axes of its parameters:

=========  =======================  ==============  ===============
norm       view                     unit            parameters
=========  =======================  ==============  ===============
batch      ``(N, C, S)``            axes ``0, 2``   axis ``1``
instance   ``(N, C, S)``            axis ``2``      axis ``1``
group      ``(N, G, C // G, S)``    axes ``2, 3``   axes ``1, 2``
layer      ``(M, L)``               axis ``1``      axis ``1``
rms        ``(M, L)``               axis ``1``      axis ``1``
response   ``(N, C, S)``            a window        none
normalize  the input                any axes        none
switch     ``(N, C, S)``            several         axis ``1``
=========  =======================  ==============  ===============

N is samples, C channels, S everything spatial, G groups, M rows, L elements of a row. Parameters
may differ from sample to sample: then they have axis ``0`` too.
"""

# ruff: noqa: F401 -- what is imported here is what there is
from .channels import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
)
from .division import normalize, normalize_backward
from .image import normalize_image
from .response import (
    cross_map_lrn,
    cross_map_lrn_backward,
    local_response_norm,
    local_response_norm_backward,
)
from .rows import (
    add_layer_norm,
    add_layer_norm_backward,
    add_rms_norm,
    add_rms_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from .statistics import Moments, moments, standardize
from .switch import switch_norm, switch_norm_backward
