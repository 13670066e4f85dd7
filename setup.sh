#!/usr/bin/env bash
# Make .venv with what the toolkit needs. A second call is instant.
#   ./setup.sh           what the stages need
#   ./setup.sh --dev     and what the tests need
#   PYTHON=/path/to/python3.11 KNOWLM_DEVICE=cpu ./setup.sh
# Without a GPU it takes CPU builds of torch and vLLM: 3 GB on disk, no CUDA.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "setup.sh: error: $*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
        if [ "$("$candidate" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)" = 3.11 ]; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed, found $( ("${PYTHON:-python3}" --version 2>&1 || echo none) | tail -n 1);" \
        "install it (python.org, conda, pyenv) or name it: PYTHON=/path/to/python3.11 $0"
}

# Run pip; show how many packages it has looked at; on failure give its reason in one line.
install() {
    local total=$1 log=.venv/setup.log
    shift
    export PIP_RETRIES=${PIP_RETRIES:-2} PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-60}
    if .venv/bin/pip install --disable-pip-version-check --no-compile "$@" 2>&1 | tee "$log" |
        awk -v total="$total" -v tty="$([ -t 2 ] && echo 1)" '
            /^Collecting/ { n++; if (tty) printf "\r  %d of %d packages  ", n, total > "/dev/stderr"
                            else if (n % 50 == 0) print "  " n " of " total " packages" > "/dev/stderr" }
            /^Installing/ { if (tty) printf "\r  installing …            \n" > "/dev/stderr" }'; then
        return 0
    fi
    reason=$(grep -E '^(ERROR|.*Errno 28|.*No space left)' "$log" | tail -n 1)
    return 1
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

device=${KNOWLM_DEVICE:-$(has_gpu && echo gpu || echo cpu)}
case $device in cpu | gpu) ;; *) fail "KNOWLM_DEVICE=$device: must be cpu or gpu" ;; esac
case "${1:-}" in "") dev= ;; --dev) dev=1 ;; *) fail "unknown argument $1; there is only --dev" ;; esac

# What is installed is known by the checksum of what was asked for.
stamp() { echo ".venv/installed-$device-$(cat "$@" | cksum | cut -d' ' -f1)"; }
base=$(stamp requirements.lock requirements.txt)
extra=$(stamp requirements-dev.lock)
[ -e "$base" ] && { [ -z "$dev" ] || [ -e "$extra" ]; } && exit 0

python=$(find_python)
free=$(df -Pk . | awk 'NR == 2 { print $4 }')
needed=$([ $device = cpu ] && echo 4500000 || echo 14000000)
[ -e "$base" ] || [ "$free" -ge $needed ] ||
    fail "the environment needs $((needed / 1000000)) GB and $((free / 1000000)) GB are free on this disk; make room, then run $0 again"

offline="check the network, a mirror (pip config set global.index-url URL) or a proxy, then run $0 again"
if [ ! -e "$base" ]; then
    echo "setting up .venv for the $device with $($python --version), once" >&2
    [ -x .venv/bin/pip ] || "$python" -m venv .venv || fail "$python can't make a virtual environment; install its venv module"
    if [ $device = gpu ]; then
        install 200 -r requirements.txt -c requirements.lock || fail "pip failed: $reason; $offline"
    else
        # The CPU build carries +cpu: from pip's configured index if it is there, else from PyTorch's own.
        torch=$(sed -n 's/^torch==//p' requirements.txt)
        [ "$(uname -s)" = Linux ] && torch=$torch+cpu
        install 1 --no-deps "torch==$torch" ||
            install 1 --no-deps "torch==$torch" --index-url https://download.pytorch.org/whl/cpu ||
            fail "pip can't get torch $torch: $reason; $offline"
        install "$(grep -c == requirements.lock)" --no-deps -r requirements.lock || fail "pip failed: $reason; $offline"
    fi
    touch "$base"
fi
if [ -n "$dev" ] && [ ! -e "$extra" ]; then
    install "$(grep -c == requirements-dev.lock)" --no-deps -r requirements-dev.lock || fail "pip failed: $reason; $offline"
    touch "$extra"
fi
