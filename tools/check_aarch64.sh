#!/usr/bin/env bash
# Builds cnorm for aarch64 with a cross compiler and runs known values and the stored digests under
# emulation, on the Python of a Debian arm64 root that apt fills from the sources it is set up with.
# Needs no root: nothing is installed, mounted or registered, all lies in a temporary folder.
# Needs: Debian or Ubuntu, apt install qemu-user-static gcc-aarch64-linux-gnu, and Python with pip
# usage: tools/check_aarch64.sh [PYTHON [TEST...]]     (default: python3, and the tests below)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
tests=("${@:2}")
((${#tests[@]})) || tests=(tests/test_known_values.py tests/test_reproducibility.py
    -k "known_values or last_release")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH

step() { printf '\n==> %s (at %d s)\n' "$1" "$SECONDS"; }
fail() { printf 'tools/check_aarch64.sh: %s\n' "$1" >&2; exit 1; }
for program in apt-get dpkg-deb qemu-aarch64-static aarch64-linux-gnu-gcc; do
    command -v "$program" > "$work/log" || fail "$program is missing; see the top of this file"
done

step "a Debian arm64 root with Python and its headers"
# apt with lists and a cache of its own, in which no package is installed; the machine's sources.
root=$work/root apt=$work/apt
mkdir -p "$root" "$apt/lists/partial" "$apt/archives/partial"
touch "$apt/status"
apt_get() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= \
        -o APT::Install-Recommends=false -o Dir::State="$apt" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt" "$@"
}
apt_get update
apt_get --yes --download-only install python3 python3-dev libgomp1 libstdc++6 > "$work/log" 2>&1 \
    || { cat "$work/log"; exit 1; }
for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
version=$(readlink "$root/usr/bin/python3")

# An interpreter that the kernel can start without binfmt_misc, and Python from sys.executable too.
cat > "$work/python" << SCRIPT
#!/bin/sh
PYTHONHOME="$root/usr" PYTHONPATH="\${PYTHONPATH:+\$PYTHONPATH:}$work/site" \\
    exec qemu-aarch64-static -L "$root" -0 "\$0" "$root/usr/bin/$version" "\$@"
SCRIPT
# The compiler runs unemulated, with the headers and libraries of the root. setup.py starts what it
# links for a probe, so that a program becomes a script that starts the emulator.
cat > "$work/cc" << SCRIPT
#!/usr/bin/env bash
set -e
aarch64-linux-gnu-gcc --sysroot="$root" "\${@/#-I\/usr\//-I$root/usr/}"
case " \$* " in *" -c "* | *" -shared "*) exit 0 ;; esac
while [[ \$1 != -o ]]; do shift; done
mv "\$2" "\$2.elf"
printf '#!/bin/sh\nexec qemu-aarch64-static -L "%s" "%s"\n' "$root" "\$2.elf" > "\$2"
chmod +x "\$2"
SCRIPT
chmod +x "$work/python" "$work/cc"

step "NumPy, Cython and what the tests import, as wheels for aarch64"
"$python" -m pip install --target "$work/site" --only-binary :all: \
    --python-version "${version#python}" --platform manylinux_2_17_aarch64 \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
    numpy Cython setuptools ml_dtypes pytest
"$work/python" -c "import numpy, sys; print(sys.version, 'NumPy', numpy.__version__)"

step "the build"
# A copy, because building writes into its tree; without what earlier builds left there.
mkdir "$work/source"
tar -c --exclude-vcs --exclude='./.*' --exclude=./build --exclude=./dist --exclude=./wheelhouse \
    --exclude='*.so' --exclude='*.c' --exclude='*.egg-info' --exclude=__pycache__ . \
    | tar -x -C "$work/source"
cd "$work/source"
CC=$work/cc LDSHARED="$work/cc -shared" "$work/python" setup.py -q build_ext --inplace \
    > "$work/log" 2>&1 || { tail -50 "$work/log"; exit 1; }
! grep "without OpenMP" "$work/log" || fail "OpenMP did not link for aarch64"
"$work/python" -m cnorm

for threads in 1 3; do
    step "known values and the $(grep -c : tests/digests.json) stored digests on $threads threads"
    CNORM_NUM_THREADS=$threads "$work/python" -m pytest -q -p no:cacheprovider "${tests[@]}"
done
printf '\naarch64 is good (%d s)\n' "$SECONDS"
