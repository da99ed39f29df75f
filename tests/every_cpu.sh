#!/usr/bin/env bash
# The notebooks as older CPUs would run them: every notebook under every cap of oneDNN. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./set_env.sh
exec env_intel_tf/bin/python tests/every_cpu.py "$@"
