#!/usr/bin/env bash
# Builds cnorm for a free-threaded CPython, 3.13 or later, and runs the tests on it without a GIL.
# Given an interpreter uses that; given CPython's source, a folder or archive, builds one from it
# (10 minutes of one core). Given nothing takes the source of python3.13 from apt: this needs
# deb-src entries of a release that has it.
# Needs for a build: gcc make libffi-dev libssl-dev zlib1g-dev libbz2-dev liblzma-dev libsqlite3-dev
# usage: tools/check_free_threaded.sh [PYTHON | SOURCE | "" [TEST...]]     (default: all tests)
# CNORM_BUILDS=avx512 builds one instruction set; JOBS=2 compiles CPython on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
given=${1:-}
tests=("${@:2}")
((${#tests[@]})) || tests=(tests)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=agg
unset PYTHONPATH

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_free_threaded.sh: %s\n' "$1" >&2; exit 1; }

if [[ -f $given && -x $given ]] || command -v "${given:-/}" > "$work/log"; then
    python=$(command -v "$given")
else
    step "CPython's source"
    mkdir "$work/cpython"
    if [[ -z $given ]]; then
        (cd "$work" && apt-get -qq source --download-only python3.13 > log 2>&1) \
            || { cat "$work/log"; fail "apt has no source of python3.13: pass CPython's"; }
        given=$(echo "$work"/python3.13_*.orig.tar.*z)
    fi
    if [[ -d $given ]]; then
        # A copy, because building writes into its tree.
        cp -r "$given/." "$work/cpython"
    else
        tar -x -f "$given" -C "$work/cpython" --strip-components=1
    fi
    step "a free-threaded CPython from it"
    (
        cd "$work/cpython"
        ./configure --disable-gil --disable-test-modules --prefix="$work/prefix"
        make "-j${JOBS:-1}"
        make altinstall
    ) > "$work/log" 2>&1 || { tail -50 "$work/log"; exit 1; }
    python=$(echo "$work"/prefix/bin/python3.*t)
fi
"$python" -c "import sysconfig; raise SystemExit(not sysconfig.get_config_var('Py_GIL_DISABLED'))" \
    || fail "$python is not a free-threaded CPython"
"$python" -VV

step "NumPy and what the tests import"
"$python" -m venv "$work/venv"
# Wheels alone: what has none for this Python would be compiled for an hour, or fail.
pip_install() { "$work/venv/bin/pip" install --only-binary :all: "$@"; }
pip_install numpy Cython setuptools pytest ml_dtypes
for package in hypothesis pytest-benchmark threadpoolctl tqdm matplotlib scikit-learn safetensors
do
    pip_install "$package" 2> "$work/log" || printf 'without %s, which has no wheel\n' "$package"
done

step "the build"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
cd "$work/source"
"$work/venv/bin/python" setup.py -q build_ext --inplace > "$work/log" 2>&1 \
    || { tail -50 "$work/log"; exit 1; }

step "tests"
# An import of a module that does not declare itself for free threading puts the GIL back.
"$work/venv/bin/python" -W error::RuntimeWarning -c "
import sys, cnorm, cnorm.functional
assert not sys._is_gil_enabled(), 'importing cnorm enabled the GIL'"
export PYTHON_GIL=0
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}"
printf '\nfree threading is good (%d s)\n' "$SECONDS"
