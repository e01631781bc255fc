#!/usr/bin/env bash
# Pretrain the published MAE-AST model with span masks: tokens of 2 frames, 77 % masked.
#
# Usage: [NAME=VALUE ...] scripts/pretrain_spans.sh [KEY=VALUE ...]
#
#   mae-ast manifest /data/AudioSet /data/LibriSpeech --out manifests --valid 0.01
#   DATA=manifests OUT=runs/spans scripts/pretrain_spans.sh
#
# DATA is a folder with train.tsv and valid.tsv. The run is written to OUT; the same command resumes
# it. NAME=VALUE sets one of the variables below, KEY=VALUE overrides any key of the preset
# config/pretrain/mae_ast.yaml. The published batch has 8388608 samples in total: with several GPUs,
# divide MAX_TOKENS by their number. The command mae-ast must be on the PATH.
set -euo pipefail

# Variables and their defaults:
DATA=${DATA:-manifests}
OUT=${OUT:-outputs/pretrain_spans}
LAYERS=${LAYERS:-12}                   # encoder layers; the paper's small models have 6
MASK_DENSITY=${MASK_DENSITY:-1.45}     # span starts per token x SPAN; masks 1 - exp(-1.45) = 77 %
SPAN=${SPAN:-10}                       # length of a span in tokens
GPUS=${GPUS:-1}                        # number of GPUs on this machine
MAX_TOKENS=${MAX_TOKENS:-8388608}      # samples at 16 kHz per GPU and batch: 52 clips of 10 s
UPDATES=${UPDATES:-550000}             # number of updates
WARMUP=${WARMUP:-32000}                # updates until the learning rate is at its maximum
LR=${LR:-0.0001}                       # maximum learning rate
SAVE_INTERVAL=${SAVE_INTERVAL:-25000}  # updates between checkpoints

case ${1:-} in -h | --help)
  sed -n '2,/^case /{/^#/{s/^# \{0,1\}//p;d;};/^[A-Z]/p;/^$/p;}' "$0"
  exit
  ;;
esac

exec mae-ast pretrain "$DATA" --config mae_ast --out "$OUT" \
  model.encoder_layers="$LAYERS" model.decoder_layers=2 \
  task.mask_type=retain_spans model.random_mask_prob="$MASK_DENSITY" model.mask_length="$SPAN" \
  model.ast_kernel_size_chan=128 model.ast_kernel_size_time=2 \
  model.ast_kernel_stride_chan=128 model.ast_kernel_stride_time=2 \
  criterion.classification_weight=1 criterion.reconstruction_weight=10 \
  distributed_training.distributed_world_size="$GPUS" \
  distributed_training.nprocs_per_node="$GPUS" \
  common.log_interval=200 checkpoint.save_interval_updates="$SAVE_INTERVAL" \
  optimization.max_update="$UPDATES" lr_scheduler.warmup_updates="$WARMUP" \
  dataset.max_tokens="$MAX_TOKENS" optimization.lr="[$LR]" \
  "$@"
