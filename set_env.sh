#!/usr/bin/env bash
# Make the Python environment env_intel_tf/ (or env_peers/, env_current/) from a hash-locked list of packages.
# A second call finds it finished and returns at once. --help says the rest.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=env_intel_tf
script=./set_env.sh
versions="3.11" # of Python, the best first

say() { printf '%s\n' "$*" >&2; }
die() { say "set_env.sh: $*"; exit 1; }

usage() {
  cat <<'TEXT'
usage: ./set_env.sh [--device cpu|gpu]
       ./set_env.sh --peers
       ./set_env.sh --current
       ./set_env.sh --kernel [--prefix DIR]
       ./set_env.sh --finished [--peers | --current]

Makes the Python 3.11 environment env_intel_tf/ (about 2.4 GB, a few minutes) with the package
versions of requirements.txt, or finds it finished. Then:
    source env_intel_tf/bin/activate && jupyter lab
--device gpu installs the build for Intel GPUs (environments/gpu.txt) where there is one; without
the option an existing environment keeps its device. To make it again from nothing, delete
env_intel_tf/ first.
--peers makes env_peers/ (about 1.9 GB) from environments/peers.txt instead: OpenVINO, ONNX
Runtime and LiteRT, which `python -m helpers.benchmark --peers` compares with. Nothing else needs it.
--current makes env_current/ (about 2.3 GB) from environments/current.txt: today's TensorFlow and
Keras 3 on Python 3.12, 3.13 or 3.11, without ITEX and Jupyter.
--kernel tells Jupyter of env_intel_tf/: a JupyterHub or Open OnDemand then offers it as a kernel, for
you, or below DIR (as /usr/local) for everybody. Again after the checkout was moved.
--finished makes nothing; its status says whether the environment is finished and of this lock.

The packages come from the package index that pip knows; or from wheels/ here, or the folder that
the variable WHEELS names, without network, where ./run_all.sh --prepare has put them.
The Python is one on the path; or uv, mamba or conda provide one. Where there is none of them, any
Python 3 with pip or venv installs uv into .uv/ here, and uv fetches the Python there.
TEXT
}

device= kernel= prefix= look=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:-nothing}; [ $# -lt 2 ] || shift ;;
    --peers) name=env_peers script="./set_env.sh --peers" versions="3.11" ;;
    --current) name=env_current script="./set_env.sh --current" versions="3.12 3.13 3.11" ;;
    --kernel) kernel=yes ;;
    --prefix) prefix=${2:-}; [ -n "$prefix" ] || die "--prefix needs a folder."; shift ;;
    --finished) look=yes ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option '$1'; see ./set_env.sh --help" ;;
  esac
  shift
done
[ -z "$prefix" ] || [ -n "$kernel" ] || die "--prefix goes with --kernel."
[ -z "$kernel" ] || [ $name = env_intel_tf ] || die "--kernel is for env_intel_tf/: there is no Jupyter in $name/."
env_dir=$here/$name
[ -n "$device" ] || device=$(cat "$env_dir/.device" 2>/dev/null || echo cpu)

# DEVICE_ROOT lets a test put other /dev and /sys trees in place.
intel_gpu() {
  local node vendor
  for node in "${DEVICE_ROOT:-}"/dev/dri/renderD*; do
    vendor=${DEVICE_ROOT:-}/sys/class/drm/${node##*/}/device/vendor
    [ -e "$node" ] && [ "$(cat "$vendor" 2>/dev/null)" = 0x8086 ] && return
  done
  return 1
}

size="2.4 GB"
case $name:$device in
  env_peers:cpu) lock_file=environments/peers.txt size="1.9 GB" ;;
  env_current:cpu) lock_file=environments/current.txt size="2.3 GB" ;;
  env_peers:*) die "the peers run on the CPU: leave --device out." ;;
  env_current:*) die "TensorFlow's own integer operations run on the CPU: leave --device out." ;;
  *:cpu) lock_file=requirements.txt ;;
  *:gpu)
    lock_file=environments/gpu.txt
    # Without these two even `import tensorflow` fails in the GPU build.
    intel_gpu || die "no Intel GPU here (no render node /dev/dri/renderD* of vendor 0x8086): use --device cpu."
    [ -e "${DEVICE_ROOT:-}"/usr/lib/x86_64-linux-gnu/libze_loader.so.1 ] || ldconfig -p | grep -q 'libze_loader\.so\.1' ||
      die "the level-zero loader libze_loader.so.1 is missing: install it (Debian, Ubuntu: apt install libze1) with the GPU's compute runtime." ;;
  *) die "--device is cpu or gpu, not '$device'" ;;
esac

stamp=$env_dir/.finished

# What a finished environment was made from; its scripts hold its own path, so that counts, too.
wanted=$(cat "$here/$lock_file" <(echo "$env_dir") | sha256sum | cut -d' ' -f1)
finished() {
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$env_dir/bin/python" -c '' 2>/dev/null
}
[ -z "$look" ] || { finished && exit || exit 1; }

# A kernelspec by ipykernel itself. `import helpers` works in it, whatever folder it starts in.
jupyter_kernel() {
  local place=(--user)
  [ -z "$prefix" ] || place=(--prefix "$prefix")
  local env=(--env PYTHONPATH "$here")
  [ "$device" != gpu ] || env+=(--env LD_LIBRARY_PATH "$env_dir/lib")
  "$env_dir/bin/python" -m ipykernel install "${place[@]}" --name int8-tutorial \
    --display-name "INT8 tutorial (TensorFlow 2.15, ITEX)" "${env[@]}" >&2 ||
    die "the kernelspec could not be written${prefix:+ below $prefix}: choose a folder that you may write to, with --prefix DIR."
}

complete() { # the environment is finished: what else was asked for
  [ -z "$kernel" ] || jupyter_kernel
  exit 0
}

finished && complete

[ "$(uname -sm)" = "Linux x86_64" ] ||
  die "Intel Extension for TensorFlow, and TensorFlow with oneDNN, are for Linux on x86-64 only (this is $(uname -sm)); on Windows use WSL 2."
[ -w "$here" ] ||
  die "$name/ is missing or stale, and $here cannot be written: let its owner run $script."

# One set-up at a time; the others wait here and then find it finished.
exec 9>"$here/.$name.lock"
if ! flock -n 9; then
  say "Another set-up is under way; waiting for it …"
  flock 9
fi
finished && complete

# Where --prepare has put all packages of this lock, no index is asked; it copies the lock at the end.
wheels=${WHEELS:-$here/wheels} index=()
lock_copy=$wheels/${lock_file//\//_}
if cmp -s "$here/$lock_file" "$lock_copy"; then
  index=(--no-index --find-links "$wheels")
elif [ -n "${WHEELS:-}" ]; then
  die "$WHEELS does not hold all packages of $lock_file: let ./run_all.sh --prepare fill it, or unset WHEELS."
fi

wanted_python=${versions%% *} # what uv and conda are asked for
any_python="Python ${versions// / or }"

fits() { # Is the command a Python of one of the versions?
  "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' $versions 2>/dev/null
}

from_path() {
  local python
  for python in $(printf 'python%s ' $versions) python3 python; do
    if fits "$python"; then
      # Debian's python3.11 may come without ensurepip; then another source has to do
      "$python" -m venv "$env_dir" >/dev/null 2>&1 && return
      rm -rf "$env_dir"
    fi
  done
  return 1
}

from_uv() { # the command uv
  command -v "$1" >/dev/null || return
  say "No $any_python on the path; uv provides one."
  if [ ${#index[@]} = 0 ]; then
    "$1" venv --quiet --seed --python "$wanted_python" "$env_dir" >&2 && return
  else # its --seed fetches pip
    "$1" venv --quiet --python "$wanted_python" "$env_dir" >&2 && "$env_dir/bin/python" -m ensurepip >/dev/null && return
  fi
  rm -rf "$env_dir"
  return 1
}

from_conda() {
  local conda
  for conda in mamba conda; do
    if command -v "$conda" >/dev/null; then
      say "No $any_python on the path; $conda provides one."
      "$conda" create --quiet --yes --prefix "$env_dir/python" "python=$wanted_python" >&2 &&
        "$env_dir/python/bin/python" -m venv "$env_dir" >&2 && return
      rm -rf "$env_dir"
    fi
  done
  return 1
}

# uv in .uv/bin/, installed by any Python 3. Its own folder and its own Python there: nothing of the
# system or of a home folder is touched, and whoever can read the checkout can read this Python.
own_uv() {
  local python lock=$here/environments/uv.txt own=$here/.uv
  cmp -s "$lock" "$own/uv.txt" && "$own/bin/uv" --version >/dev/null 2>&1 && return
  for python in python3 python; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || continue
    say "No $any_python, uv or conda here; fetching uv into .uv/, which can bring Python $wanted_python …"
    rm -rf "$own"
    # Debian's pip and venv are packages of their own: either will do
    if ! "$python" -m pip --version >/dev/null 2>&1; then
      "$python" -m venv "$own/venv" >/dev/null 2>&1 || continue
      python=$own/venv/bin/python
    fi
    PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
      --only-binary :all: --require-hashes --target "$own" -r "$lock" >&2 &&
      cp "$lock" "$own/uv.txt" && return
  done
  rm -rf "$own"
  return 1
}

from_own_uv() {
  own_uv || return
  # one more try, no more: a network that drops everything is no reason to wait for minutes
  UV_PYTHON_INSTALL_DIR=$here/.uv/python UV_HTTP_RETRIES=1 from_uv "$here/.uv/bin/uv"
}

make_venv() {
  from_path || from_uv uv || from_conda || from_own_uv && return
  local install="or uv, or conda, or pip (apt install python3-pip; this script then fetches uv, and uv Python $wanted_python), and run this again."
  [ "$name" = env_intel_tf ] && install+=" With Python 3.12 or 3.13, ./set_env.sh --current makes env_current/ instead: today's TensorFlow, without Intel's extension and the notebooks."
  die "$any_python with venv was not found and could not be fetched (the packages support no other version). Install it (Debian, Ubuntu, where they have it: apt install python$wanted_python python$wanted_python-venv), $install"
}

unfinished() {
  say "set_env.sh: $1; $name/ is not finished. Look at the messages above, then run $script again."
  exit 1
}
trap 'unfinished "Interrupted"' INT TERM

say "Making $name/ (about $size; a few minutes${index:+; from $wheels, without network}) …"
rm -rf "$env_dir"
make_venv
"$env_dir/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes ${index[@]+"${index[@]}"} \
  --progress-bar "$([ -t 2 ] && echo on || echo off)" -r "$here/$lock_file" 2>&1 |
  grep --line-buffered -E '^(Collecting|Installing|ERROR|error)|━|[0-9] [kMG]B/s' |
  sed -u -E 's/ \(from -r .*//; s/^Installing collected packages.*/Installing …/' >&2 ||
  [ "${PIPESTATUS[0]}" = 0 ] || unfinished "Installing the packages failed (no network, or a full disk?)"
"$env_dir/bin/python" -m pip --disable-pip-version-check check >&2 || unfinished "The packages do not fit together"
if [ "$device" = gpu ]; then # the oneAPI wheels put their libraries where the loader does not look
  printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$env_dir/lib" >>"$env_dir/bin/activate"
fi
echo "$device" >"$env_dir/.device"
printf '%s\n' "$wanted" >"$stamp"
say "$name/ is ready: source $name/bin/activate"
complete
