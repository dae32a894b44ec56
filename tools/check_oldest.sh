#!/usr/bin/env bash
# Builds cnorm with the oldest tools that pyproject.toml allows, and tests it on the oldest libraries.
# usage: tools/check_oldest.sh [PYTHON]     (default: python3; for the oldest Python there is, 3.11)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MPLBACKEND=agg
unset PYTHONPATH

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }

step "the lower bounds of pyproject.toml, as versions"
# Not torch and JAX, which are large.
"$python" - > "$work/oldest.txt" << 'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    pyproject = tomllib.load(file)
extras = pyproject["project"]["optional-dependencies"]
lists = [pyproject["build-system"]["requires"], pyproject["project"]["dependencies"]]
lists += [extras[name] for name in ("half", "test", "examples", "checkpoint", "sklearn", "mpi")]
for requirement in sorted({r for requirements in lists for r in requirements}):
    print(requirement.replace(">=", "=="))
PYTHON
cat "$work/oldest.txt"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --only-binary :all: -r "$work/oldest.txt"

step "one build with them"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
# At -O1, in a third of the time: how well GCC optimizes depends on nothing old.
CNORM_BUILDS=baseline CNORM_CFLAGS=-O1 "$work/venv/bin/pip" install --no-build-isolation --no-deps "$work/source"

step "tests"
# What the versions show in: the compiled code, arrays of all dtypes, threads, files, examples.
cd "$work/source"
rm -rf cnorm
run_tests() { "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$@"; }
run_tests tests/modules tests/interop tests/test_{known_values,operations,half,reproducibility}.py \
    tests/test_{threads,cache,checkpoint_hostile,checkpoint_kill,hypothesis,examples}.py \
    tests/mpi/test_sync_{module,threads}.py
run_tests tests/mpi/test_sync_mpiexec.py -k 2-
printf '\nthe oldest versions are good (%d s)\n' "$SECONDS"
