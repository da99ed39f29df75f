#!/usr/bin/env bash
# Every test, in the project's own environment. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./set_env.sh
exec env_intel_tf/bin/python -m pytest "$@"
