"""Drawing and answering with Emu3: published folders, grammar, guidance, and transformers' own path beside ours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.emu3.tiny_models import (
    bundled_photos,
    psnr_db,
    save_hf_model,
    save_original_layout,
    save_original_model,
    tiny_vqvae,
)

import mmfast
from mmfast.errors import CorruptDataError, UsageError
from mmfast.generate import Choice, Forced, SamplingSettings
from mmfast.recipes.emu3.prompts import NEGATIVE_PROMPT, POSITIVE_SUFFIX
from mmfast.recipes.emu3.vocabulary import codes_from_image_ids, image_ids
from mmfast.tokenizers import images_from_tensor, open_image

pytestmark = pytest.mark.xdist_group("emu3-generation")
GREEDY = {"image": SamplingSettings(temperature=0.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf") / "Emu3-Gen-hf"
    path.mkdir()
    return save_hf_model(path)


@pytest.fixture(scope="module")
def model(folder: Path):
    return mmfast.load(folder, device="cpu")


@pytest.fixture(scope="module")
def stock(folder: Path):
    from transformers import Emu3ForConditionalGeneration

    return Emu3ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path):
    from transformers import AutoTokenizer, Emu3ImageProcessor, Emu3Processor

    image_processor = Emu3ImageProcessor.from_pretrained(folder)
    return Emu3Processor(image_processor, AutoTokenizer.from_pretrained(folder))


def photo(name: str = "chelsea.png") -> Image.Image:
    image = open_image(bundled_photos()[name])
    image.thumbnail((96, 96))
    return image


def test_a_thousand_random_grids_always_parse(model) -> None:
    """Whatever is drawn where the grammar leaves a choice, the picture comes out as it was drawn."""
    rng = np.random.default_rng(0)
    v = model.vocabulary
    for _ in range(1000):
        grid = tuple(rng.integers(1, 25, 2).tolist())
        request = model.drawing_request("x", grid=grid, guidance_scale=1.0)
        ids: list[int] = []
        while (upcoming := request.grammar.next(len(ids), ids[-1] if ids else None)) is not None:
            if isinstance(upcoming, Forced):
                ids.append(upcoming.token)
            else:
                assert isinstance(upcoming, Choice)
                low, high = upcoming.allowed.ranges[0]
                assert (low, high) == (v.range("image").base, v.range("image").end)
                ids.append(int(rng.integers(low, high)))
        assert len(ids) == request.grammar.max_ids == grid[0] * (grid[1] + 1) + 3
        assert ids[-3:] == [v["eof"], v["eoi"], v["eos"]]
        codes = codes_from_image_ids(ids[:-3], v, grid=grid)
        assert np.array_equal(image_ids(codes, v), ids[:-3])
        assert np.array_equal(request.grammar.codes_from_ids(ids)[0], codes)


def test_every_small_grid_is_drawn_whole_in_one_batch(model) -> None:
    v = model.vocabulary
    grids = [(h, w) for h in range(1, 7) for w in range(1, 7)]
    requests = [
        model.drawing_request("a cat", grid=grid, guidance_scale=3.0, seed=i)
        for i, grid in enumerate(grids)
    ]
    for grid, result in zip(grids, model.generate(requests, num_rows=12), strict=True):
        assert result.finish == "complete"
        assert result.ids[-3:] == (v["eof"], v["eoi"], v["eos"])
        assert codes_from_image_ids(result.ids[:-3], v, grid=grid).shape == grid


def test_a_picture_is_the_decoder_s_output(model) -> None:
    request = model.drawing_request("a cat", grid=(4, 6), guidance_scale=1.0, seed=3)
    (result,) = model.generate([request], num_rows=2)
    (picture,) = model.images_from_results([request], [result])
    codes = torch.from_numpy(codes_from_image_ids(result.ids[:-3], model.vocabulary, grid=(4, 6)))
    direct = images_from_tensor(model.parts.image_tokenizer.decode([codes[None]]))[0]
    assert picture.size == (48, 32)
    assert psnr_db(np.asarray(picture), np.asarray(direct)) == float("inf")
    # Values go from [-1, 1] to 0..255 and are cut, never wrapped.
    values = model.parts.image_tokenizer.decode([codes[None]])[0]
    assert (np.asarray(picture).transpose(2, 0, 1)[values.numpy() >= 1] == 255).all()
    assert (np.asarray(picture).transpose(2, 0, 1)[values.numpy() <= -1] == 0).all()


def test_published_defaults_are_the_recipe_s(model) -> None:
    request = model.drawing_request("a cat", ratio="16:9")
    text = model.parts.text_tokenizer
    v = model.vocabulary
    conditional, negative = request.streams
    grid = (68, 120)
    assert (request.grammar.height, request.grammar.width) == grid
    assert request.grammar.max_ids == 8231
    end = (v["boi"], *text.encode("68*120"), v["img"])
    assert conditional == (v["bos"], *text.encode("a cat" + POSITIVE_SUFFIX), *end)
    assert negative == (v["bos"], *text.encode(NEGATIVE_PROMPT), *end)
    assert request.guidance_weights == (3.0,)
    assert request.sampling["image"] == SamplingSettings(temperature=1.0, top_k=2048, top_p=1.0)
    other = model.drawing_request("a cat", grid=(2, 2), negative_prompt="dogs")
    assert other.streams[1][1 : 1 + len(text.encode("dogs"))] == tuple(text.encode("dogs"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": "wide"}, "not `width:height`"),
        ({"ratio": "1:1", "grid": (2, 2)}, "either a ratio or a grid"),
        ({"grid": (0, 2)}, "empty"),
        ({"grid": (2, 2), "guidance_scale": 1.0, "negative_prompt": "x"}, "through guidance"),
    ],
)
def test_what_cannot_be_drawn_is_explained(model, arguments, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.drawing_request("a cat", **arguments)


def test_guidance_of_one_is_the_caption_alone_and_batched_guidance_is_two_passes(model) -> None:
    settings = {"grid": (3, 3), "seed": 5, "sampling": {"image": SamplingSettings(top_k=4)}}
    alone = model.drawing_request("a cat", guidance_scale=1.0, **settings)
    guided = model.drawing_request("a cat", guidance_scale=2.5, **settings)
    assert alone.streams == guided.streams[:1]
    with torch.no_grad():
        conditional, unconditional = (
            model.network(input_ids=torch.tensor([stream])).logits[0, -1]
            for stream in guided.streams
        )
    low, high = model.vocabulary.range("image").base, model.vocabulary.range("image").end
    scores = unconditional + 2.5 * (conditional - unconditional)
    best = set((low + scores[low:high].topk(4).indices).tolist())
    firsts = {
        model.generate([model.drawing_request("a cat", guidance_scale=2.5, **settings | {"seed": seed})], num_rows=2)[0].ids[0]
        for seed in range(12)
    }  # fmt: skip
    assert len(firsts) > 1
    assert firsts <= best


def test_drawing_equals_transformers_own_path(model, stock, processor) -> None:
    caption = "a cat" + POSITIVE_SUFFIX
    inputs = processor(
        text=[caption],
        return_for_image_generation=True,
        ratio="1:1",
        image_area=2304,
        return_tensors="pt",
    )
    (grid,) = inputs.pop("image_sizes")
    height, width = grid
    request = model.drawing_request(
        "a cat", grid=(height, width), guidance_scale=1.0, sampling=GREEDY
    )
    assert inputs["input_ids"][0].tolist() == list(request.streams[0])
    v, start = model.vocabulary, inputs["input_ids"].shape[1]

    def allowed(_, ids: torch.Tensor) -> list[int]:
        place = len(ids) - start + 1
        if place > height * (width + 1):
            return [[v["eof"], v["eoi"], v["eos"]][place - height * (width + 1) - 1]]
        is_end = place % (width + 1) == 0
        return [v["eol"]] if is_end else list(range(v.range("image").base, v.range("image").end))

    theirs = stock.generate(
        **inputs, max_new_tokens=height * (width + 1) + 3, do_sample=False, prefix_allowed_tokens_fn=allowed,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    (ours,) = model.generate([request], num_rows=1)
    sequence = theirs.sequences[0, start:].tolist()
    low, high = v.range("image").base, v.range("image").end
    for place, (logits, token) in enumerate(zip(theirs.logits, sequence, strict=True)):
        with torch.no_grad():
            ids = torch.tensor([[*request.streams[0], *sequence[:place]]])
            mine = model.network(input_ids=ids).logits[0, -1]
        assert (mine - logits[0]).abs().max() < 1e-5
        first, second = logits[0, low:high].topk(2).values
        if first - second > 1e-3 and ours.ids[:place] == tuple(sequence[:place]):
            assert ours.ids[place] == token
    pictures = stock.decode_image_tokens(
        image_tokens=theirs.sequences[:, start:], height=height, width=width
    )
    if ours.ids == tuple(sequence):
        mine = model.images_from_results([request], [ours])[0]
        theirs_image = images_from_tensor(pictures)[0]
        assert np.abs(np.asarray(mine).astype(int) - np.asarray(theirs_image)).max() <= 1


def test_a_question_is_the_processor_s_prompt_with_the_image_in_it(model, stock, processor) -> None:
    image = photo()
    (codes,) = model.codes_from_images([image])
    request = model.answering_request(codes, question="What is it", max_ids=8)
    prompt = "You are a helpful assistant. USER: <image>What is it. ASSISTANT:"
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    expected = inputs["input_ids"][0].clone()
    with torch.no_grad():
        tokens = stock.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"])
    expected[expected == processor.image_token_id] = tokens.to(expected.dtype)
    assert list(request.streams[0]) == expected.tolist()
    with torch.no_grad():
        theirs = stock(**inputs).logits[0, -1]
        ours = model.network(input_ids=torch.tensor([request.streams[0]])).logits[0, -1]
    assert (theirs - ours).abs().max() < 1e-4


def test_changing_the_image_changes_the_logits(model) -> None:
    logits = []
    for name in ("chelsea.png", "rocket.jpg"):
        picture = photo(name).resize((64, 48))
        (codes,) = model.codes_from_images([picture])
        request = model.answering_request(codes)
        with torch.no_grad():
            logits.append(model.network(input_ids=torch.tensor([request.streams[0]])).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    answers = model.caption([photo(), photo("rocket.jpg")], question="What is it", max_ids=6)
    assert len(answers) == 2


def test_several_images_stand_one_after_another(model) -> None:
    codes = model.codes_from_images([photo().resize((64, 48)), photo().resize((48, 64))])
    request = model.answering_request(*codes)
    v = model.vocabulary
    ids = list(request.streams[0])
    assert [ids.count(v[role]) for role in ("boi", "img", "eof", "eoi", "bos")] == [2, 2, 2, 2, 1]
    for (grid,), start in zip(codes, np.flatnonzero(np.array(ids) == v["img"]), strict=True):
        assert np.array_equal(codes_from_image_ids(ids[start + 1 :], v, grid=grid.shape), grid)
    with pytest.raises(UsageError, match="at least one image"):
        model.answering_request()


def test_the_original_layout_loads_with_its_tokenizer_beside_it(tmp_path: Path) -> None:
    folder = save_original_model(tmp_path / "Emu3-Gen")
    # Too few ranks for the real ids: the arithmetic of the vocabulary does not depend on the text file.
    model = mmfast.load(folder, device="cpu")
    assert model.vocabulary.size == 184_622
    assert model.vocabulary["boi"] == 151_852
    with pytest.raises(UsageError, match="hf download BAAI/Emu3-VisionTokenizer"):
        model.drawing_request("a cat")
    save_original_layout(tiny_vqvae(), folder / "image_tokenizer")
    request = mmfast.load(folder, device="cpu").drawing_request("a cat", ratio="16:9")
    assert (request.grammar.height, request.grammar.width) == (48, 85)
    assert request.grammar.max_ids == 48 * 86 + 3


def test_damaged_published_folders_are_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    broken = json.loads(json.dumps(config))
    broken["vocabulary_map"]["<|extra_200|>"] += 1
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(CorruptDataError, match="extra_200"):
        mmfast.load(tmp_path, device="cpu")
    broken = json.loads(json.dumps(config))
    broken["text_config"]["num_hidden_layers"] += 1
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(CorruptDataError, match="lacks 9 weights"):
        mmfast.load(tmp_path, device="cpu")
