#!/usr/bin/env bash
# Brings a virtual environment to where the tests and the demo run; installs only what is missing.
# usage: dev/install.sh VENV full|core|fuzz|extras
# (core leaves out Detectron2 and needs no compiler; fuzz adds atheris to it, extras adds the optional libraries to full)
# On failure the reason and the fix are the last line printed, and the content of .install-error.
set -uo pipefail
cd "$(dirname "$0")/.."
venv=$1 mode=$2
python=${PYTHON:-python3}
log=$venv/install.log
commit=$(sed -n 's/^DETECTRON2_COMMIT = "\(.*\)"$/\1/p' meinst_d2/__init__.py)
repository=https://github.com/facebookresearch/detectron2.git
rm -f .install-error

fail() {
    printf '%s failed: %s\n' "$step" "$1" | tee .install-error >&2
    exit 1
}

pip_install() {
    echo "== $step"
    "$venv/bin/python" -m pip install --disable-pip-version-check -q "$@" 2>&1 | tee "$log" && return
    if grep -qiE 'no space left' "$log"; then
        fail "the disk is full; free some space and run the same command again"
    elif grep -qiE 'resolve host|unable to access|could not read from remote|git (clone|fetch).* did not run' "$log"; then
        fail "$repository is out of reach; check the network or proxy and run the same command again"
    elif grep -qiE 'name resolution|name or service|connection|unreachable|timed? ?out|no matching distribution' "$log"; then
        fail "the package index is out of reach; check the network, proxy or pip's index and run the same command again"
    fi
    fail "$(tail -n 1 "$log"); the whole output is in $log"
}

has() { "$venv/bin/python" -c "$1" 2>/dev/null; }

stamp=$venv/.meinst_d2-$mode-$(cat setup.py dev/install.sh <(pwd) | cksum | cut -d ' ' -f 1)
[ -e "$stamp" ] && exit 0

step="creating $venv"
if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "$python is not Python 3.10 or newer; install one, or name it: make PYTHON=python3.12"
    echo "== $step"
    "$python" -m venv "$venv" || fail "$python has no working venv; install it (Debian: apt install python3-venv)"
fi

step="looking for what Detectron2 is built with"
if [[ $mode = full || $mode = extras ]] && ! has 'import detectron2'; then
    command -v git >/dev/null || fail "there is no git; install it (Debian: apt install git)"
    command -v "${CXX:-c++}" >/dev/null || fail "there is no C++ compiler; install one (Debian: apt install g++)"
fi

step="installing torch and torchvision"
has 'import torch, torchvision' || {
    held=$("$venv/bin/python" -c 'import torch; print("torch==" + torch.__version__)' 2>/dev/null)
    pip_install "${held:-torch>=2.4}" torchvision
}

step="installing the build tools"
has 'import pkg_resources, wheel' || pip_install 'setuptools<81' wheel

step="installing Detectron2"
if [[ $mode = full || $mode = extras ]] && ! has 'import detectron2'; then
    pip_install --no-build-isolation "git+$repository@$commit"
fi

step="installing meinst_d2"
extras=dev
[ "$mode" = fuzz ] && extras=dev,fuzz
[ "$mode" = extras ] && extras=dev,albumentations,sahi,supervision
pip_install --no-build-isolation -e ".[$extras]"
touch "$stamp"
echo "== $venv is ready"
