#!/usr/bin/env bash
# Emu3's road with tiny random weights and bundled photographs: every step that real weights take, in about three
# minutes on CPU. docs/emu3.md has the same with the published files.
#
#     bash examples/emu3/run.sh              # into out/emu3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${OUT:-out/emu3}
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
set -x

python examples/emu3/tiny_checkpoints.py --output $out/raw

# NeMo's two scripts, with their own flags.
mmfast prepare coyo --input_image_dir $out/raw/photos --input_captions_dir $out/raw/captions --vision_tokenizer $out/raw/Emu3-VisionTokenizer --text_tokenizer $out/raw/Emu3-Gen --min_pixels 4096 --max_pixels 8192 --output_prefix $out/coyo/train
mmfast prepare pokemon --dataset $out/raw/photos --image_encoder $out/raw/Cosmos-0.1-Tokenizer-DV8x16x16 --multimodal_tokenizer_path $out/raw/Emu3-Gen --output_prefix $out/pokemon/train

# Both directions for one model, each photograph as 8x8 codes.
mmfast prepare emu3 --images $out/raw/photos --image-tokenizer $out/raw/Emu3-VisionTokenizer --text-tokenizer $out/raw/Emu3-Gen --image-size 64 --null-prompt-prob 0 --output $out/data/train
mmfast train examples/emu3/photos.yaml data.prefix=$out/data/train output=$out/train
mmfast generate images --model $out/train/model --prompts $out/raw/prompts.jsonl --temperature 0 --output $out/pictures
mmfast generate captions --model $out/train/model --images $out/raw/photos --max-ids 48 --output $out/captions.jsonl
