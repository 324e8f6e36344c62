#!/usr/bin/env bash
# A fleet as a Slurm job array: one shard a task, then one job that writes the summary of all shards.
#
#   bash slurm_array.sh submit SHARDS JOBS OUT [option of seamfast fleet ...]
#
# JOBS, OUT, the models, the clean data and `seamfast` on PATH are the same on all nodes. Run the same command again,
# with as many shards, after any failure: what is done stays, what is left is run.
#
# Options of a shard; `submit` gives the summary its own.
#SBATCH --job-name=seamfast-fleet
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

usage() {
  echo "slurm_array.sh: $1; expected submit SHARDS JOBS OUT [option ...]" >&2
  exit 4
}

role=${1:-}
[ $# -eq 0 ] || shift
case $role in
  submit)
    [ $# -ge 3 ] || usage "$# arguments"
    [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] || usage "SHARDS is '$1'"
    [ -e "$2" ] || usage "JOBS is '$2', which is not there"
    script=$(realpath -- "$0") shards=$1 jobs=$(realpath -- "$2") out=$(realpath -m -- "$3")
    shift 3
    # Slurm's answer is the job id, on some sites with ;CLUSTER behind it.
    array=$(sbatch --parsable --array="0-$((shards - 1))" "$script" shard "$jobs" "$out" "$@")
    # afterany: a shard that ends in a verdict other than accepted has failed in Slurm's terms.
    summary=$(sbatch --parsable --dependency="afterany:${array%%;*}" --job-name=seamfast-fleet-summary \
      --cpus-per-task=1 --time=01:00:00 "$script" summary "$out")
    echo "shards: job ${array%%;*}, 0 to $((shards - 1)); summary: job ${summary%%;*}"
    ;;
  shard)
    [ $# -ge 2 ] || usage "$# arguments behind shard"
    : "${SLURM_ARRAY_TASK_ID:?is not set; expected a task of a job array}"
    n=$SLURM_ARRAY_TASK_COUNT
    # Of an array such as 3,5 the count is 2, and no task is shard 0 of 2: jobs would be left out. Indices are distinct,
    # so those whose last is count - 1 are all from 0.
    if [ "$SLURM_ARRAY_TASK_MAX" -ne $((n - 1)) ]; then
      echo "slurm_array.sh: the array has $n tasks, the last is $SLURM_ARRAY_TASK_MAX; expected 0 to $((n - 1))" >&2
      exit 4
    fi
    jobs=$1 out=$2
    shift 2
    # exec: signals of Slurm reach seamfast, and its exit code is that of the task.
    exec seamfast fleet "$jobs" --out "$out" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
      --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
    ;;
  summary)
    [ $# -eq 1 ] || usage "$# arguments behind summary"
    exec seamfast fleet status "$1" # its exit code, that of all shards, is the one to act on
    ;;
  *) usage "'$role'" ;;
esac
