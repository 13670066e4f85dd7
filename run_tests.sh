#!/usr/bin/env bash
# Set everything up, then check and test everything.
#   ./run_tests.sh                  all of it
#   ./run_tests.sh -m "not slow"    the fast tests; any pytest arguments
# The browser tests need Chromium; where apt-get may be used it is installed, else they are skipped by name.
set -euo pipefail
cd "$(dirname "$0")"
unset PYTHONDONTWRITEBYTECODE # else each of the many scripts compiles torch and transformers again: twice the time
./setup.sh --dev
export PATH="$PWD/.venv/bin:$PATH" # as in an activated environment: DeepSpeed builds with its ninja
browser=(chromium fonts-noto-cjk)
if ! command -v chromium >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${browser[*]}" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${browser[@]}" >/dev/null
    else
        echo "no Chromium: the browser tests are skipped; to run them: sudo apt-get install ${browser[*]}" >&2
    fi
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
    .venv/bin/pre-commit run --all-files
fi
# A file's tests stay together: they share a model, a server, a port; conftest.py says which files come first.
# Tiny models gain nothing from more threads.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
