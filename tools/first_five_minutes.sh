#!/usr/bin/env bash
# Walks what a newcomer meets, on a fresh clone and in fresh environments, and prints what worked, in how many seconds.
#
#     tools/first_five_minutes.sh [FOLDER]     # an empty folder to work in, which stays; default: a temporary one
#
# Takes about ten minutes of two cores, and the package index. Exit code 0: every step did what it should.
set -uo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
place=${1:-$(mktemp -d)}
mkdir -p "$place/logs" "$place/elsewhere"
place=$(cd "$place" && pwd)
clone=$place/clone
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
table=()
failed=0

# step NAME COMMAND...: runs it, notes its seconds and whether it ended with 0; what it says goes to a file.
step() {
    local name=$1 began=$EPOCHREALTIME log seconds outcome=works
    shift
    log="$place/logs/${#table[@]}.log"
    "$@" >"$log" 2>&1 </dev/null || { outcome="exit code $?, see $log"; failed=1; }
    seconds=$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    table+=("$(printf '| %s | %s | %s |' "$name" "$seconds" "$outcome")")
    printf '%s\n' "${table[-1]}"
}

# Those of the README's second block of commands, as they stand there, in an empty folder.
readme_commands() (
    cd "$place/elsewhere" || exit
    PATH="$place/venv/bin:$PATH"
    while read -r command; do
        printf '\n$ %s\n' "$command"
        bash -c "$command" || exit
    done < <(sed -n 's/^\$ \(seamfast [^#]*\).*/\1/p' "$clone/README.md")
)

tests() { "$clone/.venv/bin/python" -m pytest -q -n0 -p no:cacheprovider "$@"; }

installed() { "$place/venv/bin/python" -m pip install -q "$clone[demo]"; }

printf '| step | seconds | outcome |\n| --- | --- | --- |\n'
step "clone" git clone -q "$repository" "$clone"
cd "$clone" || exit 2
export PIP_CONSTRAINT=$clone/constraints.txt
step "make demo, set-up included" make demo
step "make demo, again" make demo
step "a fresh environment" "${PYTHON:-python3}" -m venv "$place/venv"
step "pip install '.[demo]'" installed
step "seamfast demo, from there" "$place/venv/bin/seamfast" demo --out "$place/elsewhere/demo"
step "the commands of README.md" readme_commands
step "make env: all that development needs" make env
step "the Python of README.md and of docs/" tests tests/test_docs.py tests/test_text_example.py
step "the tutorial, and the commands of each reader" tests tests/test_site.py
step "models of any kind: sanitize, in Python" tests -rs tests/test_anybodys_model.py -k in_python
step "models of any kind: seamfast sanitize" tests -rs tests/test_anybodys_model.py -k sanitize_and
step "models of any kind: seamfast gate" tests -rs tests/test_anybodys_model.py -k test_gate
step "callbacks, loggers, the end of a training" tests -rs tests/integrations
step "loaders and models as in the wild" tests -rs tests/data/test_in_the_wild.py tests/test_models_in_the_wild.py
step "the gate in a container, and as a workflow" tests tests/gating/test_container.py
step "make docs" make docs
step "make test-wheel: the demo from a wheel" make test-wheel

printf '\nPassed and skipped:\n'
grep -hE "^SKIPPED|[0-9]+ (passed|failed|skipped)" "$place"/logs/*.log | sort | uniq -c
exit $failed
