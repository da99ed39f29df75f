#!/usr/bin/env bash
# Run the notebooks headless: makes the environment if needed, then executes and summarises them.
# Also a batch job as it is: sbatch run_all.sh --quick resnet50   (or: qsub run_all.sh)
# Slurm would obey PBS lines, too, hence --ignore-pbs. Cores: sbatch --cpus-per-task=8 run_all.sh …
#SBATCH --ignore-pbs
#SBATCH --job-name=intel-tf-int8
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=01:00:00
#PBS -N intel-tf-int8
#PBS -l select=1:ncpus=8
#PBS -l walltime=01:00:00
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# A batch system runs a copy of this script. Slurm knows where the original lies; else the checkout
# is where the job was submitted.
if [ ! -e "$here/helpers/run/cli.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  script=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || script=
  here=${script%%/run_all.sh*}
fi
[ -e "$here/helpers/run/cli.py" ] || here=${SLURM_SUBMIT_DIR:-${PBS_O_WORKDIR:-$here}}
if [ ! -e "$here/helpers/run/cli.py" ]; then
  echo "run_all.sh: submit this job from the folder that holds run_all.sh and helpers/." >&2
  exit 1
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}

without_environment() { # any Python will do
  exec python3 -c 'import sys; sys.path[0] = sys.argv.pop(1)
from helpers.run.cli import main; sys.exit(main())' "$here" "$@"
}
for word in "$@"; do
  case $word in
    -h | --help | --list) without_environment "$@" ;;
    --check) # it makes nothing
      "$here/set_env.sh" --finished && continue
      command -v python3 >/dev/null || { echo "FAIL: no environment, and no python3 to look further: run ./set_env.sh"; exit 1; }
      without_environment "$@" ;;
  esac
done
"$here/set_env.sh"
source "$here/env_intel_tf/bin/activate"
exec python -P -m helpers.run "$@" # -P: these helpers, whatever the folder it is called from holds
