"""Model folders and the generate verb, on an untrained model: prompts, files, and clear refusals."""

import dataclasses
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import Result as Outcome
from PIL import Image
from typer.testing import CliRunner

import mmfast
from mmfast.cli.generate import app
from mmfast.errors import CorruptDataError, MmfastError, UsageError, VocabularyMismatchError
from mmfast.generate import (
    AllowedIds,
    AnsweringTask,
    Choice,
    DrawingTask,
    Forced,
    ImageGrammar,
    Request,
    Result,
    SamplingSettings,
    TextGrammar,
)
from mmfast.generate.candidates import with_candidates
from mmfast.generate.jobs import (
    JobSettings,
    _encoded_images,
    generate_captions,
    generate_images,
)
from mmfast.registry import get_recipe
from mmfast.tokenizers.fsq import FsqConfig, FsqImageTokenizer
from mmfast.tokenizers.images import open_image
from mmfast.vocab import CodeRange, Vocabulary


@pytest.fixture(scope="module")
def model(model_folder):
    return mmfast.load(model_folder, device="cpu")


@pytest.fixture
def copied_folder(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (9, 11), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> Outcome:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, MmfastError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_have_the_forms_of_cm3leon():
    vocabulary = Vocabulary.build(
        10, roles=["eos", "pad", "break", "eoss", "mask_0"], codes=[("image", 8)]
    )
    eos, _, separator, eoss, mask = range(10, 15)
    recipe = get_recipe("folder").open_generation({})
    words = {"two": [1, 2], "blurry": [3]}
    parts = SimpleNamespace(
        folder=Path("model"),
        vocabulary=vocabulary,
        settings={"grid": [1, 2]},
        text_tokenizer=SimpleNamespace(encode=words.__getitem__),
    )
    task = DrawingTask(prompt="two", guidance_scale=3.0, sampling=recipe.drawing_sampling, seed=4)
    draw = recipe.drawing_request(task, parts)
    assert draw.streams == ((eos, 1, 2, separator), (eos, mask, separator))
    assert draw.guidance_weights == (3.0,)
    assert (draw.grammar.max_ids, draw.seed) == (2, 4)
    assert draw.sampling["image"].top_p == 0.9
    plain = recipe.drawing_request(dataclasses.replace(task, guidance_scale=1.0), parts)
    assert plain.streams == ((eos, 1, 2, separator),)
    away = recipe.drawing_request(dataclasses.replace(task, negative_prompt="blurry"), parts)
    assert away.streams[1] == (eos, 3, separator)
    with pytest.raises(UsageError, match="grids of 1x2 codes only"):
        recipe.drawing_request(dataclasses.replace(task, ratio="16:9"), parts)
    question = AnsweringTask(
        codes=[[np.array([[3, 0]])]], max_ids=5, sampling=recipe.answering_sampling
    )
    caption = recipe.answering_request(question, parts)
    assert caption.streams == ((eos, mask, separator, 18, 15, eos, mask),)
    assert caption.sampling["text"].temperature == 0.0
    result = Result(ids=(3, 4, eoss), logprobs=(0.0,) * 3, finish="complete")
    assert recipe.text_ids_from_result(result, parts) == [3, 4]
    with pytest.raises(UsageError, match="takes no question"):
        recipe.answering_request(dataclasses.replace(question, question="why?"), parts)


def test_an_image_grammar_gives_back_the_grid_of_its_codes():
    grammar = ImageGrammar(
        2, 2, CodeRange(name="image", base=10, size=8), end_of_row=5, closing=(6, 7)
    )
    assert grammar.max_ids == 8
    nexts = [grammar.next(n, None) for n in range(9)]
    assert [n for n, each in enumerate(nexts) if isinstance(each, Choice)] == [0, 1, 3, 4]
    assert [each.token for each in nexts if isinstance(each, Forced)] == [5, 5, 6, 7]
    assert nexts[8] is None
    assert grammar.codes_from_ids([11, 12, 5, 13, 17, 5, 6, 7])[0].tolist() == [[1, 2], [3, 7]]
    assert grammar.codes_from_ids([11, 12, 5, 13])[0].tolist() == [[1, 2], [3, -1]]
    with pytest.raises(ValueError, match="not in range `image`"):
        grammar.codes_from_ids([11, 5])


def test_drawing_gives_images_that_depend_on_seed_and_caption_only(model):
    captions = ["a handwritten seven", "the digit two", "a handwritten seven"]
    drawn = model.draw(captions, temperature=3.0, top_p=1.0, seed=5, num_rows=4)
    assert [image.size for image in drawn] == [(8, 8)] * 3
    alone = model.draw(captions[1:2], temperature=3.0, top_p=1.0, seed=6, num_rows=4)
    assert drawn[1].tobytes() == alone[0].tobytes()
    assert drawn[0].tobytes() != drawn[2].tobytes()


def test_the_best_of_several_candidates_is_kept(model):
    captions = ["a handwritten seven", "the digit two"]
    way = {"temperature": 3.0, "top_p": 1.0, "num_rows": 4}
    one_by_one = [
        [model.draw([caption], seed=9 + i + (j << 32), **way)[0] for j in range(3)]
        for i, caption in enumerate(captions)
    ]
    seen = []

    def brightness(caption, image):
        seen.append(caption)
        return float(np.asarray(image).mean())

    best = model.draw(captions, seed=9, num_candidates=3, scorer=brightness, **way)
    assert seen == [captions[0]] * 3 + [captions[1]] * 3
    for image, candidates in zip(best, one_by_one, strict=True):
        brightest = max(candidates, key=lambda each: np.asarray(each).mean())
        assert image.tobytes() == brightest.tobytes()
    with pytest.raises(UsageError, match="gave no number for request 0"):
        model.draw(captions, num_candidates=2, scorer=lambda *_: float("nan"), num_rows=2)
    with pytest.raises(UsageError, match="at least one candidate"):
        model.draw(captions, num_candidates=0, num_rows=2)


def test_the_likeliest_candidate_is_kept_where_no_score_is_given(model):
    requests = [model.drawing_request("the digit two", seed=3)]
    each = model.generate(with_candidates(requests, 4), num_rows=8)
    (best,) = model.generate(requests, num_candidates=4, num_rows=8)
    assert best.logprobs == max((result.logprobs for result in each), key=sum)
    assert len({result.ids for result in each}) > 1


def test_pictures_are_shown_while_they_are_drawn(model):
    captions = ["a handwritten seven", "the digit two"]
    requests = [model.drawing_request(caption, seed=i) for i, caption in enumerate(captions)]
    drawn = model.draw(captions, num_rows=4)
    shown = list(model.stream_images(requests, every=2, num_rows=4))
    finished = {number: image for number, image, is_finished in shown if is_finished}
    assert [finished[i].tobytes() for i in range(2)] == [image.tobytes() for image in drawn]
    partial = [image for number, image, is_finished in shown if number == 0 and not is_finished]
    assert len(partial) == 1
    pixels = np.asarray(partial[0])
    assert (pixels[4:] == 128).all()
    assert (pixels[:4] != 128).any()


def test_a_plain_language_model_goes_on_with_texts(copied_folder):
    for name in ("vocabulary.json", "recipe.json"):
        (copied_folder / name).unlink()
    model = mmfast.load(copied_folder)
    texts = model.complete(["the digit", "two"], max_ids=6, temperature=0.0, num_rows=2)
    assert len(texts) == 2
    ids = torch.tensor([model.parts.text_tokenizer.encode("the digit")])
    made = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
    )
    eos = model.network.generation_config.eos_token_id
    expected = [token for token in made[0, ids.shape[1] :].tolist() if token != eos]
    assert texts[0] == model.parts.text_tokenizer.decode(expected)


def test_captions_are_text_that_fits_the_context(model, scans):
    images = [Image.open(path) for path in sorted(scans.iterdir())]
    captions = model.caption(images, temperature=1.0, max_ids=500, num_rows=2)
    assert len(captions) == 3
    assert all(isinstance(caption, str) for caption in captions)


def test_images_verb_writes_pictures_manifest_and_report(model_folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"prompt": "a handwritten seven", "label": "seven"}\n\n{"prompt": "two", "label": "two"}\n'
    )
    output = tmp_path / "drawn"
    arguments = ("images", "--model", model_folder, "--prompts", prompts, "--output", output)
    plan = json.loads(run(*arguments, "--dry-run").stdout)
    assert (plan["num_items"], plan["streams_per_item"], plan["context"]) == (2, 2, 48)
    assert not output.exists()
    assert "2 items" in run(*arguments, "--seed", 7).stdout
    manifest = lines_of(output / "manifest.jsonl")
    assert manifest == [
        {"prompt": "a handwritten seven", "label": "seven", "image": "00000.png", "seed": 7},
        {"prompt": "two", "label": "two", "image": "00001.png", "seed": 8},
    ]
    first = [(output / line["image"]).read_bytes() for line in manifest]
    report = json.loads((output / "generate.json").read_text())
    assert report["num_ids"] == 2 * model_grid_size(model_folder)
    assert report["settings"]["guidance_scale"] == 3.0
    assert not list(output.glob("*.tmp"))
    run(*arguments, "--seed", 7)
    assert first == [(output / line["image"]).read_bytes() for line in manifest]


def model_grid_size(folder: Path) -> int:
    height, width = json.loads((folder / "recipe.json").read_text())["grid"]
    return height * width


def test_a_job_that_fails_leaves_no_manifest(model, tmp_path, monkeypatch):
    settings = JobSettings(sampling={"image": SamplingSettings()}, num_rows=2)
    generate_images(model, [{"prompt": "two"}], tmp_path, settings)
    assert (tmp_path / "manifest.jsonl").exists()
    saved = []

    def fail_at_the_second(image, target, **kwargs):
        if saved:
            raise OSError("no space left on device")
        saved.append(target)
        target.write(b"png")

    monkeypatch.setattr(Image.Image, "save", fail_at_the_second)
    with pytest.raises(OSError, match="no space"):
        generate_images(model, [{"prompt": "two"}, {"prompt": "one"}], tmp_path, settings)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_requests_are_all_checked_before_they_are_shared_out(model, tmp_path, monkeypatch):
    settings = JobSettings(sampling={"image": SamplingSettings()}, num_rows=2)
    (tmp_path / "manifest.jsonl").write_text("an earlier run's\n")

    def too_late(*_):
        raise AssertionError("shared before all requests were checked")

    monkeypatch.setattr("mmfast.generate.model.run_shared", too_late)
    prompts = [{"prompt": "two"}] * 5 + [{"prompt": "x" * 60}]
    with pytest.raises(UsageError, match="request 5 does not fit"):
        generate_images(model, prompts, tmp_path, settings)
    assert (tmp_path / "manifest.jsonl").exists()


def test_a_caption_request_is_called_by_the_number_of_its_record(copied_folder, scans, tmp_path):
    (scans / "0.png").write_bytes(b"not an image")
    config = json.loads((copied_folder / "config.json").read_text())
    (copied_folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 5}))
    settings = JobSettings(sampling={"image": SamplingSettings()}, num_rows=2)
    model = mmfast.load(copied_folder, device="cpu")
    with pytest.raises(UsageError, match="request 1 does not fit"):
        generate_captions(model, scans, tmp_path / "captions.jsonl", settings)


def test_a_rank_opens_its_share_of_the_images_and_holds_one_at_a_time(
    model, scans, tmp_path, monkeypatch
):
    monkeypatch.setattr("mmfast.generate.jobs.IMAGE_BATCH", 2)
    images, opened, most = [], [], []

    def counted(path):
        image = open_image(path)
        images.append(weakref.ref(image))
        opened.append(path.name)
        most.append(sum(each() is not None for each in images))
        return image

    monkeypatch.setattr("mmfast.generate.jobs.open_image", counted)
    for i in range(3, 7):
        shutil.copy(scans / "0.png", scans / f"{i}.png")
    records = [{"image": f"{i}.png"} for i in range(7)]
    whole, _ = _encoded_images(model, scans, records)
    assert list(whole) == list(range(7))
    # The image before may still be referred to while the next one is opened.
    assert max(most) <= 2
    # Rank 1 of 2 computes batches 1 and 3; what it would be sent by rank 0 does not matter here.
    opened.clear()
    monkeypatch.setattr(
        "mmfast.generate.jobs.compute_shared", lambda num, compute: [compute(i) for i in (1, 3)]
    )
    share, _ = _encoded_images(model, scans, records)
    assert opened == ["2.png", "3.png", "6.png"]
    assert all(np.array_equal(share[i], whole[i]) for i in (2, 3, 6))


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_another_image_tokenizer_is_refused_before_anything_is_lost(copied_folder, tmp_path, extra):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("an earlier run's\n")
    other = FsqImageTokenizer(
        FsqConfig(
            channels=1,
            image_height=8,
            image_width=8,
            fsq_levels=(4, 3),
            widths=(8, 8),
            num_blocks=1,
        )
    )
    recipe = json.loads((copied_folder / "recipe.json").read_text())
    other.save(copied_folder / "image_tokenizer")
    with pytest.raises(VocabularyMismatchError) as caught:
        run("images", "--model", copied_folder, "--prompt", "two", "--output", tmp_path, *extra)
    assert other.fingerprint in str(caught.value)
    assert recipe["image_tokenizer"]["fingerprint"] in str(caught.value)
    assert manifest.exists()


def test_captions_verb_reads_folders_and_manifests_and_counts_bad_images(
    model_folder, scans, tmp_path
):
    output = tmp_path / "captions.jsonl"
    run("captions", "--model", model_folder, "--images", scans, "--output", output)
    assert [line["image"] for line in lines_of(output)] == ["0.png", "1.png", "2.png"]
    (scans / "bad.png").write_bytes(b"not an image")
    manifest = scans / "captions.jsonl"
    names = ["1.png", "bad.png", "../outside.png", "0.png"]
    manifest.write_text(
        "".join(
            json.dumps({"image": name, "caption": "true", "label": name}) + "\n" for name in names
        )
    )
    plan = run(
        "captions", "--model", model_folder, "--images", manifest, "--output", output, "--dry-run"
    )
    assert json.loads(plan.stdout)["num_items"] == 4
    outcome = run("captions", "--model", model_folder, "--images", manifest, "--output", output)
    written = lines_of(output)
    assert [(line["image"], line["label"], line["reference"]) for line in written] == [
        ("1.png", "1.png", "true"),
        ("0.png", "0.png", "true"),
    ]
    assert all(isinstance(line["caption"], str) for line in written)
    report = json.loads((tmp_path / "captions.generate.json").read_text())
    assert report["skipped"] == {"image_format": 1, "image_path": 1}
    assert "bad.png" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x" * 60], "does not fit the model's context of 48"),
        ([], "either --prompts FILE.jsonl or one or more --prompt"),
        (["--prompts", "absent.jsonl"], "there is no file"),
        (["--prompt", "a", "--device", "abacus"], "must be auto, cpu or cuda"),
        (["--prompt", "a", "--batch-rows", "1"], "2 streams, but the engine has only 1"),
    ],
)
def test_images_verb_says_what_is_wrong(model_folder, tmp_path, arguments, message):
    output = tmp_path / "drawn"
    with pytest.raises(UsageError, match=message):
        run("images", "--model", model_folder, "--output", output, *arguments)
    assert not (output / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"prompt": 3}', UsageError, "prompts.jsonl:1: field `prompt`"),
        ('{"prompt": "a"}\n{', CorruptDataError, "prompts.jsonl:2 is not JSON"),
        ('["a"]', CorruptDataError, "holds a JSON list, not an object"),
        ("\n", UsageError, "holds no records"),
    ],
)
def test_bad_prompt_files_are_named(model_folder, tmp_path, text, error, message):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(text)
    with pytest.raises(error, match=message):
        run("images", "--model", model_folder, "--prompts", prompts, "--output", tmp_path / "o")


def test_folders_that_are_no_models_are_refused(copied_folder, tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        mmfast.load(tmp_path / "absent")
    recipe = json.loads((copied_folder / "recipe.json").read_text())
    (copied_folder / "recipe.json").write_text(json.dumps(recipe | {"grid": [0, 2]}))
    with pytest.raises(CorruptDataError, match="empty grid"):
        mmfast.load(copied_folder).draw(["a"])
    (copied_folder / "recipe.json").unlink()
    with pytest.raises(UsageError, match=r"no recipe\.json"):
        mmfast.load(copied_folder).draw(["a"])
    (copied_folder / "vocabulary.json").unlink()
    plain = mmfast.load(copied_folder)
    with pytest.raises(UsageError, match=r"has no vocabulary\.json"):
        _ = plain.vocabulary
    grammar = TextGrammar(text=AllowedIds(((0, 50),)), stop_ids=(60,), max_ids=4)
    assert len(plain.generate([Request(streams=((1, 2),), grammar=grammar)], num_rows=1)) == 1
    with pytest.raises(UsageError, match="NeMo checkpoint"):
        mmfast.load(tmp_path / "model.nemo")


def test_parts_that_do_not_belong_together_are_refused(copied_folder):
    vocabulary = Vocabulary.load(copied_folder)
    tokenizer = (copied_folder / "tokenizer.json").read_text()
    (copied_folder / "tokenizer.json").write_text(tokenizer + " ")
    with pytest.raises(VocabularyMismatchError, match="not the tokenizer"):
        mmfast.load(copied_folder).draw(["a"])
    roles = list(vocabulary.special)
    plain = Vocabulary.build(vocabulary.text_size, roles=roles, multiple_of=vocabulary.size)
    plain.save(copied_folder)
    with pytest.raises(UsageError, match="no image ids"):
        mmfast.load(copied_folder).draw(["a"])
    wider = Vocabulary.build(vocabulary.text_size, roles=roles, multiple_of=2 * vocabulary.size)
    wider.save(copied_folder)
    with pytest.raises(VocabularyMismatchError, match="do not belong together"):
        mmfast.load(copied_folder)


def test_guidance_without_an_unconditional_form_is_refused(copied_folder):
    vocabulary = Vocabulary.load(copied_folder)
    special = {role: i for role, i in vocabulary.special.items() if not role.startswith("mask")}
    Vocabulary(
        size=vocabulary.size,
        text_size=vocabulary.text_size,
        special=special,
        ranges=vocabulary.ranges,
        text_fingerprint=vocabulary.text_fingerprint,
    ).save(copied_folder)
    model = mmfast.load(copied_folder)
    with pytest.raises(UsageError, match="use guidance scale 1"):
        model.draw(["a"])
    assert len(model.draw(["a"], guidance_scale=1.0, num_rows=2)) == 1
    with pytest.raises(UsageError, match="lacks \\['mask_0'\\]"):
        model.caption([Image.new("L", (8, 8))])


def test_weights_load_in_the_asked_precision(model_folder):
    assert mmfast.load(model_folder, dtype=torch.bfloat16).network.dtype == torch.bfloat16


NEMO_DRAWING = """
inference:
  greedy: False
  top_k: 3
  top_p: 0.9
  temperature: 1.5
  add_BOS: True
  tokens_to_generate: 3
  all_probs: False
  repetition_penalty: 1.2
  min_tokens_to_generate: 0
  compute_logprob: False
  end_strings: ["<|extra_204|>"]
trainer: {devices: 1, num_nodes: 1, accelerator: gpu, precision: bf16}
tensor_model_parallel_size: -1
pipeline_model_parallel_size: -1
gpt_model_file: null
checkpoint_dir: null
captions: ["a handwritten seven", "the digit two"]
images_output_path: OUTPUT
image_encoder: Cosmos-Tokenizer-DV8x16x16
surprise: 3
"""


def test_nemos_drawing_configuration_is_read(model_folder, tmp_path, capsys):
    config = tmp_path / "generation.yaml"
    output = tmp_path / "drawn"
    config.write_text(NEMO_DRAWING.replace("OUTPUT", str(output)))
    outcome = run("images", "--model", model_folder, "--config", config, "--temperature", 2)
    assert "tokens_to_generate is 3, but a picture takes 4 ids" in outcome.stderr
    assert "repetition_penalty 1.2 is left out" in outcome.stderr
    assert "`image_encoder` Cosmos-Tokenizer-DV8x16x16 is not loaded; without" in outcome.stderr
    assert "not used: surprise" in outcome.stderr
    assert [line["prompt"] for line in lines_of(output / "manifest.jsonl")] == [
        "a handwritten seven",
        "the digit two",
    ]
    sampling = json.loads((output / "generate.json").read_text())["settings"]["sampling"]["image"]
    assert (sampling["top_k"], sampling["temperature"]) == (3, 2)
    assert sampling["repetition_penalty"] == 1


def test_nemos_understanding_configuration_is_read(model_folder, scans, tmp_path):
    config = tmp_path / "understanding.yaml"
    text = NEMO_DRAWING.replace("greedy: False", "greedy: True").split("captions:")[0]
    config.write_text(f"{text}images_path: ['{scans / '0.png'}', '{scans / '2.png'}']\n")
    output = tmp_path / "captions.jsonl"
    run("captions", "--model", model_folder, "--config", config, "--output", output)
    assert [line["image"] for line in lines_of(output)] == ["0.png", "2.png"]
    settings = json.loads((tmp_path / "captions.generate.json").read_text())["settings"]
    assert settings["max_ids"] == 3
    assert settings["sampling"]["text"]["temperature"] == 0
    assert settings["sampling"]["text"]["repetition_penalty"] == 1.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt_model_file: model.nemo", "`gpt_model_file` names a NeMo checkpoint"),
        ("captions: one", "`captions` should be a list of texts"),
        ("inference: {top_k: many}", "`inference.top_k` should be a number"),
        ("inference: 3", "`inference` should hold settings"),
    ],
)
def test_what_a_nemo_configuration_cannot_mean_is_refused(model_folder, tmp_path, text, message):
    config = tmp_path / "generation.yaml"
    config.write_text(text)
    arguments = ("--model", model_folder, "--output", tmp_path / "o", "--config", config)
    with pytest.raises(UsageError, match=message):
        run("images", *arguments)


def test_every_setting_of_the_sampler_can_be_given(model_folder, scans, tmp_path):
    output = tmp_path / "drawn"
    arguments = ("images", "--model", model_folder, "--prompt", "two", "--output", output)
    given = ("--sampling", "image.min_p=0.1", "--sampling", "order=emu3", "--candidates", 2)
    run(*arguments, *given)
    settings = json.loads((output / "generate.json").read_text())["settings"]
    assert settings["num_candidates"] == 2
    assert (settings["sampling"]["image"]["min_p"], settings["sampling"]["image"]["order"]) == (
        0.1,
        "emu3",
    )
    for wrong, message in (
        ("tpo_k=1", "unknown sampling setting tpo_k"),
        ("text.top_k=1", "one of image"),
        ("top_k", "NAME=VALUE"),
        ("top_p=much", "cannot be sampled with"),
    ):
        with pytest.raises(UsageError, match=message):
            run(*arguments, "--sampling", wrong)
    answers = tmp_path / "answers.jsonl"
    image = scans / "1.png"
    run("captions", "--model", model_folder, "--image", image, "--output", answers)
    assert [line["image"] for line in lines_of(answers)] == ["1.png"]
    with pytest.raises(UsageError, match="there is no file"):
        run("captions", "--model", model_folder, "--image", "no.png", "--output", answers)
    with pytest.raises(UsageError, match="either --images FOLDER"):
        run("captions", "--model", model_folder, "--output", answers)
