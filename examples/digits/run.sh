#!/usr/bin/env bash
# From scanned digits to drawn and captioned ones, with verbs that take any folder of captioned images.
#
#     make demo                                      # seed 0, into out/demo
#     SEED=1 OUT=out/demo-1 make demo
#
# SEED decides everything random: the split, both trainings and all samples. PROCESSES (2) is the number
# of processes that prepare and train; it changes nothing but the time, up to rounding of the losses.
# Every command is printed before it runs and noted with its time in $OUT/stages.jsonl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seed=${SEED:-0}
out=${OUT:-out/demo}
processes=${PROCESSES:-2}
raw=$out/raw
export TOKENIZERS_PARALLELISM=false
# One thread a process: the models are too small for more, and results repeat on any number of cores.
export OMP_NUM_THREADS=1

now() { python -c 'import time; print(time.time())'; }

# stage NAME COMMAND...
stage() {
  local name=$1 started
  shift
  printf '\n[%s] $ %s\n' "$name" "$*"
  started=$(now)
  "$@"
  python - "$name" "$started" "$*" >>"$out/stages.jsonl" <<'PYTHON'
import json
import sys
import time

name, started, command = sys.argv[1:]
seconds = round(time.time() - float(started), 2)
print(json.dumps({"stage": name, "command": command, "started_at": float(started), "seconds": seconds}))
PYTHON
}

spread() { stage "$1" torchrun --standalone --nproc-per-node "$processes" "${@:2}"; }

if [[ -e $out/stages.jsonl ]]; then
  rm -rf "$out"
elif [[ -d $out && -n $(ls -A "$out") ]]; then
  echo "error: $out is not empty and holds no earlier run of this example; choose another OUT" >&2
  exit 2
fi
mkdir -p "$out"

stage export python examples/digits/export_digits.py --output "$raw" --seed "$seed"

stage "image tokenizer" mmfast tokenizer train-image --images "$raw/train" --preset tiny \
  --output "$out/tokenizers/image" --seed "$seed"
stage "text tokenizer" mmfast tokenizer train-text --captions "$raw/train/captions.jsonl" \
  --vocab-size 320 --output "$out/tokenizers/text.json"

spread "prepare train" -m mmfast.prepare folder --images "$raw/train" \
  --captions "$raw/train/captions.jsonl" --caption-choice random --copies 24 --augment affine \
  --shard-records 256 \
  --image-tokenizer "$out/tokenizers/image" --text-tokenizer "$out/tokenizers/text.json" \
  --seed "$seed" --output "$out/data/train"
spread "prepare held-out" -m mmfast.prepare folder --images "$raw/heldout" \
  --captions "$raw/heldout/captions.jsonl" --caption-choice random \
  --image-tokenizer "$out/tokenizers/image" --text-tokenizer "$out/tokenizers/text.json" \
  --seed "$seed" --output "$out/data/heldout"

spread train -m mmfast.train examples/digits/train.yaml output="$out/train" seed="$seed" \
  data.prefix="$out/data/train" data.validation_prefix="$out/data/heldout"

stage "draw, guided" mmfast generate images --model "$out/train/model" \
  --prompts "$raw/prompts.jsonl" --guidance-scale 3 --top-p 0.9 --seed "$seed" \
  --output "$out/generated/guided"
stage "draw, unguided" mmfast generate images --model "$out/train/model" \
  --prompts "$raw/prompts.jsonl" --guidance-scale 1 --top-p 0.9 --seed "$seed" \
  --output "$out/generated/unguided"
stage caption mmfast generate captions --model "$out/train/model" \
  --images "$raw/heldout/captions.jsonl" --seed "$seed" --output "$out/captions/captions.jsonl"
stage reconstruct mmfast tokenizer reconstruct --tokenizer "$out/tokenizers/image" \
  --images "$raw/heldout" --captions "$raw/heldout/captions.jsonl" \
  --output "$out/reconstructions"

stage evaluate mmfast evaluate --train-captions "$raw/train/captions.jsonl" \
  --test-captions "$raw/heldout/captions.jsonl" \
  --reconstructions "$out/reconstructions/manifest.jsonl" \
  --images "guided=$out/generated/guided/manifest.jsonl" \
  --images "unguided=$out/generated/unguided/manifest.jsonl" \
  --captions "$out/captions/captions.jsonl" --templates "$raw/templates.txt" \
  --output "$out/evaluation.json"

# The report shows the stages so far; --ends-now counts its own time into total_seconds.
printf '\n'
mmfast report "$out" --title "Handwritten digits" --ends-now \
  --output "$out/report.html" --summary "$out/summary.json"
printf '\nThe report is %s\n' "$out/report.html"
