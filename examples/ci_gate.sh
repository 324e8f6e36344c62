#!/usr/bin/env bash
# A gate for models that others trained: nothing goes on that was not sanitized and accepted.
#
#   ci_gate.sh [WORK_FOLDER]
#
# A real gate gets its model from outside and its clean data from the team that knows the task. This one makes both, so
# that it runs anywhere: it plants a backdoor in a small model, then treats that model as a stranger's.
set -uo pipefail

work=${1:-$(mktemp -d)}
received=$work/received
sanitized=$work/sanitized

# The stranger's part: a folder with model.safetensors, model.json and, for our curiosity, triggers.npz.
seamfast plant --data digits --seed 0 --out "$received" || exit

# The gate's part. Without --triggers it would do the same: a known trigger is measured and reported, never used.
seamfast sanitize "$received" --data digits --fraction 0.2 --holdout-split test \
  --triggers "$received/triggers.npz" --out "$sanitized"
status=$?

# A status is a decision. Only 0 lets a model pass, so whatever is unforeseen blocks it.
case $status in
  0) echo "gate: passed; use $sanitized, not $received" ;;
  1) echo "gate: blocked; not accepted, and $sanitized/report.json says why: a person should look at it" ;;
  2) echo "gate: blocked; the run could not be completed: try again, with more memory or disk" ;;
  3) echo "gate: blocked; the model or the data was refused" ;;
  4) echo "gate: blocked; the command is wrong, mend the gate" ;;
  *) echo "gate: blocked; unexpected status $status" ;;
esac
exit $status
