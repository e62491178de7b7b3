"""Pictures on one device: milliseconds a step, seconds a picture, transformers' generate as the peer.

    make gpu-generate                          # one CUDA GPU: 760M and 7B in bfloat16, under nine minutes
    python benches/generate/gpu_generate.py    # without a GPU the same code on tiny shapes, which measure nothing

For each model, on random weights, pictures of 1,024 codes with guidance 3 and top-p 0.9:

    correct    logits of a guided picture against a plain forward, and the same ids alone and in company;
               nothing is timed where this fails
    one        one picture, two rows: milliseconds a step and seconds a picture
    many       16 pictures at once, 32 rows: seconds a picture
    peer       transformers' generate with its static cache (and the compilation that it then does): two rows,
               guidance in a logits processor, greedy so that both rows get the same id

A first picture captures the steps as graphs; what is timed comes after it. A result is a line of JSON, printed
and kept in `benches/results/generate-<device>.json` as soon as it is known.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList

from mmfast.generate import Engine, ImageGrammar, Request, SamplingSettings
from mmfast.models import build_decoder, register_attention
from mmfast.train import load_train_config
from mmfast.vocab import Vocabulary

RESULTS = Path(__file__).parents[1] / "results"
ROLES = ["eos", "pad", "break", "eoss", *(f"mask_{i}" for i in range(16))]
GUIDANCE = 3.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the pictures it draws: of side * side codes, `many` of them at once."""

    preset: str
    side: int
    many: int
    peer_ids: int
    rounds: int


ON_CUDA = (Case("cm3leon_760m", 32, 16, 256, 3), Case("cm3leon_7b", 32, 16, 128, 2))
ON_CPU = (Case("cm3leon_tiny", 3, 2, 9, 1),)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="the file of results")
    parser.add_argument("--only", default="", help="a part of the presets' names")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = Lines(arguments.output or RESULTS / f"generate-{device.type}.json", device)
    for case in ON_CUDA if device.type == "cuda" else ON_CPU:
        if arguments.only in case.preset:
            bench_case(case, device, lines)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


class Lines:
    """Prints each result and writes the file anew with it, so that a run that is cut leaves what it found."""

    def __init__(self, output: Path, device: torch.device) -> None:
        self.output = output
        self.machine = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.results: list[dict[str, Any]] = []

    def add(self, **result: Any) -> None:
        """Takes in one result."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in result.items()}
        self.results.append(rounded)
        print(json.dumps(rounded), flush=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": self.machine, "results": self.results}, indent=1)
        self.output.write_text(text + "\n", encoding="utf-8")


def bench_case(case: Case, device: torch.device, lines: Lines) -> None:
    on_cuda = device.type == "cuda"
    sizes = (56_320, 8_192, 65_536) if on_cuda else (400, 64, 1)
    vocabulary = Vocabulary.build(
        sizes[0], roles=ROLES, codes=[("image", sizes[1])], multiple_of=sizes[2]
    )
    model = random_model(case.preset, vocabulary, device)
    requests = [picture(case, vocabulary, seed) for seed in range(case.many)]
    engine = Engine(model, num_rows=2)
    check(engine, requests, model, lines, case)
    for what, chosen, runner in (
        ("one", requests[:1], engine),
        ("many", requests, Engine(model, num_rows=2 * case.many)),
    ):
        runner.run(chosen)
        secs = timed(lambda runner=runner, chosen=chosen: runner.run(chosen), case.rounds, device)
        lines.add(
            model=case.preset,
            what=what,
            rows=runner.num_rows,
            ids_per_picture=case.side**2,
            ms_per_step=1e3 * secs / case.side**2,
            secs_per_picture=secs / len(chosen),
        )
    peer = peer_generate(case, requests[0], model)
    peer()
    secs = timed(peer, 1, device)
    lines.add(
        model=case.preset,
        what="peer",
        rows=2,
        ids_per_picture=case.peer_ids,
        ms_per_step=1e3 * secs / case.peer_ids,
        secs_per_picture=secs / case.peer_ids * case.side**2,
    )


def random_model(preset: str, vocabulary: Vocabulary, device: torch.device) -> Any:
    """The preset's model, its weights drawn on the device."""
    shape = build_decoder(load_train_config(preset, []).model, vocabulary)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = type(shape)(shape.config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.set_attn_implementation(register_attention())
    return model.eval()


def picture(case: Case, vocabulary: Vocabulary, seed: int) -> Request:
    """A request as the folder recipe makes it, its caption of random ids."""
    generator = torch.Generator().manual_seed(seed)
    caption = torch.randint(0, vocabulary.text_size, (40 - seed % 8,), generator=generator)
    eos, separator = vocabulary["eos"], vocabulary["break"]
    return Request(
        streams=((eos, *caption.tolist(), separator), (eos, vocabulary["mask_0"], separator)),
        guidance_weights=(GUIDANCE,),
        grammar=ImageGrammar(case.side, case.side, vocabulary.range("image")),
        sampling={"image": SamplingSettings(top_p=0.9)},
        seed=seed,
    )


@torch.inference_mode()
def check(engine: Engine, requests: list[Request], model: Any, lines: Lines, case: Case) -> None:
    """Raises if ids depend on company, or if logits are not those of a plain forward."""
    (alone,) = Engine(model, num_rows=2 * case.many).run(requests[1:2])
    together = Engine(model, num_rows=2 * case.many).run(requests)
    is_same = together[1] == alone
    seen: list[torch.Tensor] = []
    # Without graphs, so that the logits of every step can be looked at.
    recorder = Engine(model, num_rows=2, static=False)
    plain = recorder.logits
    recorder.logits = lambda *a: (seen.append(logits := plain(*a)), logits)[1]  # type: ignore[method-assign]
    (result,) = recorder.run(requests[:1])
    image = requests[0].grammar.codes
    worst = 0.0
    for row, stream in enumerate(requests[0].streams):
        ids = torch.tensor([[*stream, *result.ids[:-1]]], device=engine.device)
        whole = model(input_ids=ids, use_cache=False).logits[0, len(stream) - 1 :]
        expected = whole[:, image.base : image.end].float()
        found = torch.stack([logits[row] for logits in seen]).float()
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    tolerance = 3e-2 if engine.device.type == "cuda" else 1e-5
    (captured,) = engine.run(requests[:1])
    is_captured = captured.ids == result.ids
    lines.add(
        model=case.preset,
        what="correct",
        same_alone_and_in_company=is_same,
        same_with_and_without_graphs=is_captured,
        worst_logit_difference=worst,
    )
    if not is_same or worst > tolerance:
        raise SystemExit("generation is not correct on this device; nothing was timed")


class Guidance(LogitsProcessor):
    """Row 0 conditional, row 1 unconditional; both get the mixture, and only codes."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [2, V] to one mixture for both rows."""
        del input_ids
        conditional, unconditional = torch.log_softmax(scores.float(), dim=-1)
        mixed = unconditional + GUIDANCE * (conditional - unconditional)
        masked = torch.full_like(mixed, -torch.inf)
        masked[self._low : self._high] = mixed[self._low : self._high]
        return masked.expand(2, -1)


def peer_generate(case: Case, request: Request, model: Any) -> Callable[[], Any]:
    """What one writes with transformers alone, its static cache switched on."""
    model.set_attn_implementation("sdpa")
    length = max(map(len, request.streams))
    ids = torch.zeros(2, length, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for row, stream in enumerate(request.streams):
        ids[row, length - len(stream) :] = torch.tensor(stream, device=model.device)
        mask[row, length - len(stream) :] = 1
    codes = request.grammar.codes
    return lambda: model.generate(
        ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([Guidance(codes.base, codes.end)]),
        cache_implementation="static",
        do_sample=False,
        min_new_tokens=case.peer_ids,
        max_new_tokens=case.peer_ids,
    )


def timed(run: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
