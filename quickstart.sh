#!/usr/bin/env bash
# Set everything up in .venv, then go the whole way once: from raw text to a model that extracts knowledge.
#   ./quickstart.sh                          on SmolLM2-135M, about 8 minutes on two CPU cores
#   ./quickstart.sh --base_model ./converted on a LLaMA-like model of yours
#   ./quickstart.sh --serve | --web          then serve the tuned model, or open its page
# Killed or stopped, the same command goes on where it was. Results: runs/quickstart/report.md
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/setup.sh"
exec "$here/.venv/bin/python" "$here/tools/quickstart.py" "$@"
