# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# The kernels, compiled for avx2 (setup.py says with which flags).
include "kernels.pyx"
