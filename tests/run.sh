#!/usr/bin/env bash
# Every test, in the project's own environment. Extra arguments go to pytest (-n 0: one after the other).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./set_env.sh
python=env_intel_tf/bin/python
# what only the tests need; once per lock
if ! cmp -s tests/requirements.txt env_intel_tf/.tests; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r tests/requirements.txt
  cp tests/requirements.txt env_intel_tf/.tests
fi
exec "$python" -m pytest --durations=15 -n 2 --dist loadfile --no-loadscope-reorder "$@"
