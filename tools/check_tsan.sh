#!/usr/bin/env bash
# Runs every operation on two and three threads under ThreadSanitizer, with clang's OpenMP and its
# Archer, which tells ThreadSanitizer where the threads of a parallel region wait for each other.
# Of the builds the baseline: ThreadSanitizer sees accesses of up to 16 bytes, which its vectors
# have; those of the other builds are wider, and their source is the same.
# Needs: apt install clang libomp-dev, and a Python with its headers and library and what the tests
# import, such as the one of the everyday build. Takes 3 minutes of one core, mostly to compile.
# usage: tools/check_tsan.sh [PYTHON [FILE...]]     (default: python3, and the two files below)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
files=("${@:2}")
((${#files[@]})) || files=(tests/memcheck.py "tests/digests.py 2 3")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_tsan.sh: %s\n' "$1" >&2; exit 1; }
command -v clang > "$work/log" || fail "clang is missing: apt install clang libomp-dev"
archer=$(clang -print-resource-dir)/../../libarcher.so
[[ -f $archer ]] || fail "libarcher.so is missing: apt install libomp-dev"

step "an interpreter that starts ThreadSanitizer, since Python itself does not"
"$python" - > "$work/flags" << 'PYTHON'
import sys, sysconfig

variable = sysconfig.get_config_var
print("-I" + sysconfig.get_path("include", vars={"base": sys.base_prefix}))
print(f"-L{variable('LIBDIR')} -L{variable('LIBPL')} -Wl,-rpath,{variable('LIBDIR')} -rdynamic")
print(f"-lpython{variable('LDVERSION')} {variable('LIBS')} {variable('SYSLIBS')}")
PYTHON
cat > "$work/main.c" << 'C'
#include <Python.h>
int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }
C
# shellcheck disable=SC2046  # the flags are words
clang -O1 -g -fsanitize=thread -fopenmp "$work/main.c" -o "$work/python" $(cat "$work/flags")
site=$("$python" -c "import sys; print(':'.join(p for p in sys.path if p.endswith('-packages')))")
home=$("$python" -c "import sys; print(sys.base_prefix)")

# Not ignore_noninstrumented_modules, which clang recommends: on Linux it hides memcpy too, and that
# is how clang copies a group of vectors. OpenMP's own calls to the system are what is left out.
echo "called_from_lib:libomp.so" > "$work/suppressions"
watched() {  # without the random addresses that ThreadSanitizer may not find room among
    PYTHONHOME=$home PYTHONPATH=$PWD:$site OMP_TOOL_LIBRARIES=$archer OPENBLAS_NUM_THREADS=1 \
        TSAN_OPTIONS="ignore_noninstrumented_modules=0 suppressions=$work/suppressions" \
        setarch -R "$work/python" "$@"
}
reported() {
    watched "$@" 2> "$work/log" || true
    grep -q "ThreadSanitizer: data race" "$work/log"
}

step "the build"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
cd "$work/source"
CC=clang LDSHARED="clang -shared" CNORM_BUILDS=baseline CNORM_CFLAGS="-O1 -g -fsanitize=thread" \
    "$python" setup.py -q build_ext --inplace > "$work/log" 2>&1 \
    || { tail -50 "$work/log"; exit 1; }
! grep "without OpenMP" "$work/log" || fail "OpenMP did not link with clang"

step "races on purpose are reported, and a sum of OpenMP's is not"
cat > "$work/control.c" << 'C'
#include <string.h>
float to[16], from[16];
void both_copy(void) {
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < 1000; i++) memcpy(to, from, sizeof to);
}
int sum(void) {
    int total = 0;
#pragma omp parallel for num_threads(2) reduction(+ : total)
    for (int i = 0; i < 1000; i++) total += i;
    return total;
}
C
clang -O1 -g -fPIC -shared -fopenmp -fsanitize=thread "$work/control.c" -o "$work/control.so"
watched -c "import ctypes; assert ctypes.CDLL('$work/control.so').sum() == 499500" \
    2> "$work/log" || { cat "$work/log"; fail "a correct sum is reported"; }
reported -c "import ctypes; ctypes.CDLL('$work/control.so').both_copy()" \
    || fail "two threads that copy to one place are not reported"
cat > "$work/control.py" << 'PYTHON'
"""Two Python threads that give a kernel one array to write to."""

from threading import Barrier, Thread

import numpy as np

import cnorm
import cnorm.functional as F

cnorm.set_num_threads(1)
x = np.random.default_rng(0).normal(size=(400, 1024)).astype(np.float32)
out = np.empty_like(x)
start = Barrier(2)


def calls():
    start.wait()
    for _ in range(100):
        F.layer_norm(x, 1024, out=out)


threads = [Thread(target=calls) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
PYTHON
reported "$work/control.py" || fail "two kernels that write to one array are not reported"

for file in "${files[@]}"; do
    step "$file"
    # shellcheck disable=SC2086  # a file and its arguments
    watched $file > "$work/log" 2>&1 || { cut -c1-200 "$work/log" | head -500; exit 1; }
done
printf '\nno race (%d s)\n' "$SECONDS"
