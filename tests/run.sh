#!/usr/bin/env bash
# Every test, in the project's own environment. Extra arguments go to pytest (-n 0: one after the other).
# Unless these choose tests, the files of CURRENT also run in env_current/, where that is there: what a network passes
# through works with Keras 3 and today's TensorFlow, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CURRENT=(tests/test_current.py tests/test_freezing.py tests/test_graphs.py)
./set_env.sh
python=env_intel_tf/bin/python
# what only the tests need; once per lock
if ! cmp -s tests/requirements.txt env_intel_tf/.tests; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes -r tests/requirements.txt
  cp tests/requirements.txt env_intel_tf/.tests
fi
status=0
"$python" -m pytest --durations=15 -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
case " $* " in *" tests/"* | *" -k "*) exit $status ;; esac # a choice of tests is not made twice
if [ -e env_current/.finished ]; then
  env_current/bin/python -m pytest --durations=5 "${CURRENT[@]}" || status=$?
elif [ -n "${CI:-}" ]; then
  echo "tests/run.sh: no env_current/ (./set_env.sh --current)" >&2
  status=1
fi
exit $status
