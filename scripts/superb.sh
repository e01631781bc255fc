#!/usr/bin/env bash
# Fine-tune and test a model on the SUPERB tasks of the MAE-AST paper; print its row of accuracies.
#
# Usage: [NAME=VALUE ...] scripts/superb.sh [OPTION ...]
#
#   CHECKPOINT=runs/patch KS=/data/KS SID=/data/VoxCeleb1 ER=/data/IEMOCAP_full_release \
#     scripts/superb.sh
#
# Keyword spotting (KS1), speaker identification (SID) and emotion recognition (ER, five folds) run
# one after the other with the paper's settings, through s3prl. OUT gets a folder for each task, and
# scores.md with the row: test accuracy in %, for ER the mean of the five folds, and - for a task
# without a result. The same command resumes. TASKS and FOLDS select a part of the work, so that
# several machines can share one OUT. NAME=VALUE sets one of the variables below; each OPTION goes
# to s3prl's run_downstream in training, such as -o config.optimizer.lr=1e-4. The command mae-ast
# must be on the PATH, installed with the extra [superb].
set -euo pipefail

# Variables and their defaults:
CHECKPOINT=${CHECKPOINT:-mae_ast_patch} # a file, a run's folder or a released model's name
KS=${KS:-data/KS}                       # speech_commands_v0.01/, speech_commands_test_set_v0.01/
SID=${SID:-data/VoxCeleb1}              # dev/wav/, test/wav/, iden_split.txt
ER=${ER:-data/IEMOCAP_full_release}     # Session1/ to Session5/
TASKS=${TASKS:-ks sid er}               # tasks to run
FOLDS=${FOLDS:-1 2 3 4 5}               # test sessions of ER
LAYOUT=${LAYOUT:-tokens}                # patch models: tokens (the paper's) or time_steps (s3prl's)
STEPS=${STEPS:-}                        # training steps of each task; empty: the paper's
OUT=${OUT:-outputs/superb/$(basename "$CHECKPOINT" .pt)}

case ${1:-} in -h | --help)
  sed -n '2,/^case /{/^#/{s/^# \{0,1\}//p;d;};/^[A-Z]/p;/^$/p;}' "$0"
  exit
  ;;
esac

for task in $TASKS; do
  case $task in ks | sid | er) ;; *)
    echo "${0##*/}: error: TASKS=$task: must be ks, sid or er" >&2
    exit 2
    ;;
  esac
done

options=("$@") # for s3prl

# run TASK DATA FOLDER [OPTION ...]: train or resume, then test the checkpoint that was best on dev.
run() {
  local task=$1 data=$2 folder=$3
  local command=(mae-ast superb "$task" "$CHECKPOINT" --data "$data" --out "$folder"
    --layout "$LAYOUT" "${@:4}")
  "${command[@]}" ${STEPS:+--steps "$STEPS"} -- "${options[@]}"
  "${command[@]}" --mode evaluate | tee "$folder/test.log"
}

# score LOG ...: mean test accuracy in %; - if a log is missing or has no result.
score() {
  { sed -n 's/^test acc: //p' "$@" 2> /dev/null || true; } |
    awk -v n=$# '{ sum += $1 } END { if (NR == n) printf "%.1f", 100 * sum / n; else print "-" }'
}

for task in $TASKS; do
  case $task in
  ks) run ks "$KS" "$OUT/ks" ;;
  sid) run sid "$SID" "$OUT/sid" ;;
  er) for fold in $FOLDS; do run er "$ER" "$OUT/er/fold$fold" --fold "$fold"; done ;;
  esac
done

{
  echo "| checkpoint | KS1 | SID | ER |"
  echo "| --- | --- | --- | --- |"
  echo "| $CHECKPOINT | $(score "$OUT/ks/test.log") | $(score "$OUT/sid/test.log") |" \
    "$(score "$OUT"/er/fold{1..5}/test.log) |"
} > "$OUT/scores.md"
echo
cat "$OUT/scores.md"
