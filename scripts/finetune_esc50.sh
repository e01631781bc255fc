#!/usr/bin/env bash
# Fine-tune a model on ESC-50 with AST's protocol and report the mean accuracy of the five folds.
#
# Usage: [NAME=VALUE ...] scripts/finetune_esc50.sh [KEY=VALUE ...]
#
#   ESC50=/data/ESC-50 CHECKPOINT=runs/patch OUT=runs/esc50 scripts/finetune_esc50.sh
#
# ESC50 is the unpacked data set (https://github.com/karolpiczak/ESC-50). The five folds are trained
# with the settings of the preset CONFIG, each tested on its held-out fold after the last epoch.
# OUT gets manifests/, a run and a report by class for each fold in folds/, and report.md with mean
# and std of the accuracy; the same command resumes. NAME=VALUE sets one of the variables below,
# KEY=VALUE overrides any key of the preset, for all folds. The command mae-ast must be on the PATH.
set -euo pipefail

# Variables and their defaults:
ESC50=${ESC50:-data/ESC-50}             # folder with meta/esc50.csv and audio/
CHECKPOINT=${CHECKPOINT:-mae_ast_patch} # a file, a run's folder or a released model's name
CONFIG=${CONFIG:-esc50}                 # for other systems: ssast_esc50, audio_mae_esc50, ast_esc50
OUT=${OUT:-outputs/esc50}

case ${1:-} in -h | --help)
  sed -n '2,/^case /{/^#/{s/^# \{0,1\}//p;d;};/^[A-Z]/p;/^$/p;}' "$0"
  exit
  ;;
esac

mae-ast prepare esc50 "$ESC50" --out "$OUT/manifests"
mae-ast crossvalidate "$CHECKPOINT" "$OUT/manifests" --config "$CONFIG" --out "$OUT/folds" "$@"

# The last two rows of folds.csv are the mean and the sample std.
awk -F, -v checkpoint="$CHECKPOINT" -v config="$CONFIG" '
  NR > 1 { mean = std; std = $3; clips = $2 }
  END {
    print "| checkpoint | preset | folds | clips | mean accuracy | std |"
    print "| --- | --- | --- | --- | --- | --- |"
    printf "| %s | %s | %d | %d | %.4f | %.4f |\n", checkpoint, config, NR - 3, clips, mean, std
  }' "$OUT/folds/folds.csv" > "$OUT/report.md"
echo
cat "$OUT/report.md"
