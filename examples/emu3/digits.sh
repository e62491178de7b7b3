#!/usr/bin/env bash
# The demo's digits in Emu3's forms: its prompts, its rows ended by eol, its grammar; tokenizers of the demo.
#
#     make demo                              # makes out/demo: scans, captions, both tokenizers
#     bash examples/emu3/digits.sh           # into out/emu3-digits, 11 minutes of CPU time
#
# One model learns both directions: half of the documents teach to draw, half to describe, and of each only what
# follows its prompt is learnt. PROCESSES (2) is the number of processes that prepare and train; DEMO and OUT name
# the folders.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

demo=${DEMO:-out/demo}
out=${OUT:-out/emu3-digits}
seed=${SEED:-0}
raw=$demo/raw
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}
spread() { run torchrun --standalone --nproc-per-node "${PROCESSES:-2}" "$@"; }

tokenizers=(--image-tokenizer "$demo/tokenizers/image" --text-tokenizer "$demo/tokenizers/text.json")
spread -m mmfast.prepare emu3 --images "$raw/train" --captions "$raw/train/captions.jsonl" \
  "${tokenizers[@]}" --caption-choice random --copies 24 --augment affine --null-prompt-prob 0.1 \
  --loss answer --question "What digit is it" --shard-records 256 --seed "$seed" --output "$out/data/train"
spread -m mmfast.prepare emu3 --images "$raw/heldout" --captions "$raw/heldout/captions.jsonl" \
  "${tokenizers[@]}" --caption-choice random --null-prompt-prob 0.1 \
  --loss answer --question "What digit is it" --seed "$seed" --output "$out/data/heldout"

spread -m mmfast.train examples/emu3/digits.yaml output="$out/train" seed="$seed" \
  data.prefix="$out/data/train" data.validation_prefix="$out/data/heldout" "$@"

run mmfast generate images --model "$out/train/model" --prompts "$raw/prompts.jsonl" --guidance-scale 3 \
  --top-k 0 --top-p 0.9 --seed "$seed" --output "$out/generated/guided"
run mmfast generate captions --model "$out/train/model" --images "$raw/heldout/captions.jsonl" --max-ids 32 \
  --seed "$seed" --output "$out/captions/captions.jsonl"
run mmfast tokenizer reconstruct --tokenizer "$demo/tokenizers/image" --images "$raw/heldout" \
  --captions "$raw/heldout/captions.jsonl" --output "$out/reconstructions"
run mmfast evaluate --train-captions "$raw/train/captions.jsonl" --test-captions "$raw/heldout/captions.jsonl" \
  --reconstructions "$out/reconstructions/manifest.jsonl" --images "guided=$out/generated/guided/manifest.jsonl" \
  --captions "$out/captions/captions.jsonl" --templates "$raw/templates.txt" --output "$out/evaluation.json"
