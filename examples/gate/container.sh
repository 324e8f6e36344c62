#!/usr/bin/env bash
# Runs the gate in a container that can do nothing but write a verdict.
#
#   container.sh IMAGE MODEL INTAKE VERDICTS
#
# MODEL is the model as received; INTAKE holds clean/ and policy.toml, from a source that you trust; the verdict is
# written to VERDICTS/verdict, which must not exist yet. The status is the gate's: only 0 passes. ENGINE names another
# engine than podman, MEMORY and CPUS other limits.
set -euo pipefail

if [[ $# -ne 4 ]]; then
  echo "container.sh takes IMAGE MODEL INTAKE VERDICTS; got $# arguments" >&2
  exit 4
fi
image=$1
model=$(realpath -e -- "$2")
intake=$(realpath -e -- "$3")
verdicts=$(realpath -e -- "$4")

# As the caller, so that the verdict is the caller's; as nobody if root calls.
user=$(id -u):$(id -g)
if [[ $(id -u) -eq 0 ]]; then
  user=65532:65532
  chown 65532:65532 "$verdicts"
fi
userns=()
if [[ ${ENGINE:-podman} == podman && $(id -u) -ne 0 ]]; then userns=(--userns=keep-id); fi

exec "${ENGINE:-podman}" run --rm "${userns[@]}" \
  --user="$user" \
  --network=none \
  --read-only \
  --cap-drop=ALL \
  --security-opt=no-new-privileges \
  --memory="${MEMORY:-4g}" \
  --cpus="${CPUS:-2}" \
  --pids-limit=256 \
  --tmpfs=/tmp:rw,nosuid,nodev,size=512m \
  --volume="$model:/received:ro" \
  --volume="$intake:/intake:ro" \
  --volume="$verdicts:/verdicts" \
  "$image" gate /received --data /intake/clean --policy /intake/policy.toml --out /verdicts/verdict
