#!/usr/bin/env bash
# Builds cnorm with Clang for one instruction set, the one that runs here, without a warning, and holds
# its results against the stored digests, which GCC's builds give too. Needs what the tests need, Clang and its OpenMP
# (Debian: apt install clang libomp-dev).
# usage: tools/check_clang.sh [PYTHON]     (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_clang.sh: %s\n' "$1" >&2; exit 1; }
command -v clang || fail "clang is not installed (Debian: apt install clang libomp-dev)"

step "a wheel by $(clang --version | head -1)"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
build=$("$python" -c "from cnorm import _dispatch; print(_dispatch.name())")
CC=clang LDSHARED="clang -shared" CNORM_BUILDS=$build CNORM_CFLAGS="-Wall -Wextra -Werror" \
    make --silent -C "$work/source" wheel PYTHON="$python" DIST="$work/dist"
"$python" -m pip install --no-deps --target "$work/installed" "$work"/dist/*.whl
compiled=$(echo "$work"/installed/cnorm/kernels/_"$build".*.so)
grep -q 'clang version' "$compiled" || fail "$compiled was not compiled by clang"

step "the digests of its $build kernels"
cd "$work/source"
rm -rf cnorm
PYTHONPATH="$work/installed" "$python" - "$work/installed" << 'PYTHON'
import sys

import cnorm
from cnorm import _runtime

assert cnorm.__file__.startswith(sys.argv[1]), cnorm.__file__
assert _runtime.has_openmp(), "built without OpenMP: is Clang's (libomp-dev) installed?"
cnorm.show_config()
PYTHON
# Clang's threads wait by turning in circles. With more of them than idle processors that takes
# minutes, so: not many, and to sleep at once.
OMP_WAIT_POLICY=passive CNORM_THREAD_POLICY=fixed PYTHONPATH="$work/installed" \
    "$python" tests/digests.py --check 1 2 3
printf '\nclang and gcc give the same bits (%d s)\n' "$SECONDS"
