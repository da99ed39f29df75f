#!/usr/bin/env bash
# Every architecture of Keras Applications from its file to INT8, into docs/networks.md. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./set_env.sh
exec env_intel_tf/bin/python tests/zoo.py "$@"
