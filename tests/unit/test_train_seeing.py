"""What a run says of itself: operations, utilisation, figures, further loggers, a profile."""

import sys
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig

from mmfast.config import load_config
from mmfast.data import Batch
from mmfast.errors import ConfigError, UsageError
from mmfast.models import DecoderConfig, build_decoder
from mmfast.models.decoder import PRESET_PACKAGE
from mmfast.train import load_train_config
from mmfast.train.flops import StepCost, peak_tflops, step_cost
from mmfast.train.loggers import open_loggers
from mmfast.vocab import Vocabulary

WIDE = Vocabulary.build(65_000, roles=["eos", "pad"], multiple_of=65_536)


@pytest.mark.parametrize(
    ("preset", "full", "causal"),
    [
        ("cm3leon_350m", 3.42, 2.82),
        ("cm3leon_760m", 6.49, 5.59),
        ("cm3leon_7b", 46.7, 43.5),
    ],
)
def test_a_token_costs_what_the_published_arithmetic_says(preset, full, causal):
    """Operations in billions at rows of one document of 4,096, as published tables have them."""
    config = load_config(DecoderConfig, preset=preset, preset_package=PRESET_PACKAGE)
    cost = step_cost(build_decoder(config, WIDE))
    d, L = config.hidden_size, config.num_layers
    body_and_head = 12 * L * d * d + WIDE.size * d
    assert cost.matrix_weights == body_and_head
    assert cost.full(1, 4096) / 1e9 == pytest.approx(full, rel=2e-3)
    assert cost.causal(1, 4096) / 1e9 == pytest.approx(causal, rel=2e-3)
    assert cost.causal(1, 4096) == 6 * body_and_head + 6 * L * d * 4096


def test_only_pairs_within_a_document_are_counted():
    document_ids = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.int32)
    zeros = torch.zeros(2, 6)
    batch = Batch(
        input_ids=zeros.long(),
        labels=zeros.long(),
        position_ids=zeros.int(),
        document_ids=document_ids,
        modality_ids=zeros.to(torch.uint8),
        loss_weights=zeros,
        cu_seqlens=torch.tensor([0, 3, 5, 6, 8, 12], dtype=torch.int32),
        max_seqlen=4,
        weight_sum=0.0,
        num_tokens=7,
        num_documents=3,
    )
    assert StepCost(matrix_weights=1, attention_width=1).pairs(batch) == 9 + 4 + 4
    # Within a window of 2 the document of 3 counts 2 (2 * 3 - 2).
    windowed = StepCost(matrix_weights=1, attention_width=1, window=2, windowed_share=0.75)
    assert windowed.pairs(batch) == 0.75 * 8 + 0.25 * 9 + 4 + 4


def test_the_cost_of_a_model_knows_which_layers_have_a_window():
    shape = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    configs = {
        (None, 0.0): LlamaConfig(**shape),
        (9, 1.0): MistralConfig(**shape, sliding_window=9),
        (9, 0.75): Gemma3TextConfig(**shape, sliding_window=9, layer_types=kinds),
    }
    for expected, config in configs.items():
        with torch.device("meta"):
            cost = step_cost(AutoModelForCausalLM.from_config(config))
        assert (cost.window, cost.windowed_share) == expected


def test_the_peak_is_the_devices_or_the_one_given(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert peak_tflops(0.0, cpu) is None
    assert peak_tflops(2.5, cpu) == 2.5
    for name, peak in [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Some GPU", None),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_tflops(0.0, cuda) == peak


class FakePackage(types.ModuleType):
    """Remembers what it is called with, as `wandb` or `trackio` would be."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, figures, step):
        self.calls.append(("log", step, figures))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_loggers_get_every_step(monkeypatch, tmp_path, name):
    package = FakePackage(name)
    monkeypatch.setitem(sys.modules, name, package)
    (logger,) = open_loggers([name], tmp_path, config={"seed": 1})
    logger.log(3, {"loss": 1.5})
    logger.close()
    kind, options = package.calls[0]
    assert (kind, options["project"], options["name"]) == ("init", "mmfast", tmp_path.name)
    assert options["config"] == {"seed": 1}
    assert package.calls[1:] == [("log", 3, {"loss": 1.5}), ("finish",)]


def test_a_run_that_goes_on_is_the_same_run_at_wandb_and_trackio(monkeypatch, tmp_path):
    inits = {}
    for name in ("wandb", "trackio"):
        package = FakePackage(name)
        monkeypatch.setitem(sys.modules, name, package)
        for start_step in (0, 4, 0):
            open_loggers([name], tmp_path, config={}, start_step=start_step)
        inits[name] = [options for _, options in package.calls]
    begun, gone_on, anew = (options["id"] for options in inits["wandb"])
    assert begun == gone_on != anew
    assert {options["resume"] for options in inits["wandb"]} == {"allow"}
    assert [options["resume"] for options in inits["trackio"]] == ["never", "allow", "never"]


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    reader = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(reader, reason="tensorboard is not installed")
    for figures in [{1: 3.0, 2: 2.0, 3: 1.5}, {3: 1.25, 4: 1.0}]:  # the second goes on after step 2
        first = min(figures)
        (logger,) = open_loggers(["tensorboard"], tmp_path, config={}, start_step=first - 1)
        for step, loss in figures.items():
            logger.log(step, {"loss": loss})
        logger.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read == [(1, 3.0), (2, 2.0), (3, 1.25), (4, 1.0)]


def test_a_logger_that_is_not_installed_or_unknown_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UsageError, match="trackio, which is not installed: `pip install mmfast"):
        open_loggers(["trackio"], tmp_path, config={})
    with pytest.raises(ConfigError, match="names 'paper'; there are tensorboard, wandb, trackio"):
        load_train_config("tiny", ["train.loggers=[paper]"])
