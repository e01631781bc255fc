#!/usr/bin/env bash
# Train the demo's model with a fixed seed, and compare its metrics with the recorded band.
#
# Usage: [NAME=VALUE ...] scripts/reference_run.sh [OPTION ...]
#
# 'make reference' is the same. The band is that of eight seeds, in
# benchmarks/results/reference_run_*.csv; the script prints a row for each metric and update, and
# fails if one lies outside. A run that was stopped resumes; a finished one of another commit is
# refused. To record a band anew:
#
#   SEEDS='1 2 3 4 5 6 7 8' scripts/reference_run.sh --record reference.csv
#
# The commands python and mae-ast must be those of the environment of 'make venv'.
set -euo pipefail

# Variables and their defaults:
SEEDS=${SEEDS:-1}             # seeds to train with
OUT=${OUT:-outputs/reference} # gets a run folder for each seed
DEMO=${DEMO:-demo}            # folder of the demo, whose corpus is made if it is missing

case ${1:-} in -h | --help)
  sed -n '2,/^case /{/^#/{s/^# \{0,1\}//p;d;};/^[A-Z]/p;/^$/p;}' "$0"
  exit
  ;;
esac

if [[ ! -f $DEMO/corpus/test.lbl ]]; then
  mae-ast demo --corpus-only --out "$DEMO"
fi
runs=()
for seed in $SEEDS; do
  run=$OUT/seed$seed
  runs+=("$run")
  mae-ast pretrain "$DEMO/corpus" --config demo --out "$run" common.seed="$seed" \
    task.probe_data="$DEMO/corpus" task.probe_interval_updates=300 task.probe_clips=500
done
PYTHONPATH=$(cd "$(dirname "$0")/.." && pwd) \
  python -m scripts.reference_band --corpus "$DEMO/corpus" "$@" "${runs[@]}"
