"""Writes scikit-learn's 1,797 scans of handwritten digits as a folder of PNG files with captions.

The only script of this example that knows about digits; every later step is a verb of `mmfast` that
takes any folder. The scans come from the UCI data set "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, 1998): 8x8 pixels, ink 0..16, here 8-bit grey with white ink.

    python examples/digits/export_digits.py --output out/demo/raw --seed 0

Layout written under `--output`:

    train/*.png     train/captions.jsonl      1,500 scans, {"image", "caption": [...], "label"}
    heldout/*.png   heldout/captions.jsonl    the other 297
    prompts.jsonl                             {"prompt", "label"}: 20 a digit, over all phrasings
    templates.txt                             the phrasings, one a line, with {label} to fill in

A record carries every phrasing, so that `mmfast prepare` can pick another one for each copy.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {label}",
    "the digit {label} written by hand",
    "a scan of the number {label}",
    "a small picture of a {label}",
    "{label}, in white ink on black",
    "somebody wrote the number {label}",
)
NUM_TRAIN = 1500
MAX_INK = 16


def export_digits(output: Path, *, seed: int, prompts_per_label: int = 20) -> None:
    """Writes the folder described above; the same seed gives the same bytes.

    The split is stratified: each digit has its share of the held-out scans, whatever the seed.
    """
    digits = load_digits()
    ink = np.asarray(digits.images)
    pixels = np.rint(ink * (255 / MAX_INK)).astype(np.uint8)
    train, heldout = train_test_split(
        np.arange(len(pixels)), train_size=NUM_TRAIN, random_state=seed, stratify=digits.target
    )
    for name, chosen in (("train", train), ("heldout", heldout)):
        folder = output / name
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.png"):
            stale.unlink()
        records = []
        for scan_idx in sorted(int(i) for i in chosen):
            label = LABELS[int(digits.target[scan_idx])]
            file_name = f"scan-{scan_idx:04}.png"
            Image.fromarray(pixels[scan_idx]).save(folder / file_name)
            captions = [template.format(label=label) for template in TEMPLATES]
            records.append({"image": file_name, "caption": captions, "label": label})
        write_jsonl(folder / "captions.jsonl", records)
    write_jsonl(
        output / "prompts.jsonl",
        (
            {"prompt": TEMPLATES[i % len(TEMPLATES)].format(label=label), "label": label}
            for label in LABELS
            for i in range(prompts_per_label)
        ),
    )
    (output / "templates.txt").write_text("\n".join(TEMPLATES) + "\n", encoding="utf-8")


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/demo/raw"))
    parser.add_argument("--seed", type=int, default=0, help="decides the split (default 0)")
    parser.add_argument("--prompts-per-label", type=int, default=20)
    arguments = parser.parse_args()
    export_digits(
        arguments.output, seed=arguments.seed, prompts_per_label=arguments.prompts_per_label
    )
    print(f"1,797 scans in {arguments.output}: 1,500 to train, 297 held out, 6 phrasings")
