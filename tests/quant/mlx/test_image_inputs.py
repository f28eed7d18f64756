"""Questions about images, through a model's own processor, in a process of its own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from dynquant.errors import ImagesError, TextError
from dynquant.quant.allocate import allocate
from dynquant.quant.formats import parse_menu
from dynquant.quant.mlx.image_inputs import image_inputs, require_tower
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.model_inputs import ModelInputs, run_model
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.sensitivity import Measurement, measure_importance
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import EFFORTS
from dynquant.texts.image_files import images_in_folder
from dynquant.texts.images import ImagePrompt, ImagePrompts
from tests.fakes import make_text
from tests.families import save
from tests.pictures import make_pictures
from tests.quant.mlx.factories import make_windows
from tests.quant.mlx.test_families import plain_importance, relative_error
from tests.vision import make_gemma, make_vision_model

pytest.importorskip("mlx_vlm")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("seer") / "source")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> ImagePrompts:
    folder = make_pictures(tmp_path_factory.mktemp("images") / "photos", 4)
    rows = [{"file_name": "00.png", "text": "a red cat"}]
    rows += [{"file_name": f"{i:02}.png", "question": "what" * i} for i in range(1, 4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return images_in_folder(folder)


@pytest.fixture(scope="module")
def inputs(source, images) -> list[ModelInputs]:
    return image_inputs(open_model(source), images)


def changed(source: Path, folder: Path, file: str, **fields: object) -> Path:
    """A copy of the model in which a file of JSON has other fields."""
    shutil.copytree(source, folder)
    raw = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(raw | fields))
    return folder


def test_each_prompt_becomes_tokens_and_pixels(inputs):
    assert len(inputs) == 4
    assert all({"pixel_values", "image_grid_thw"} <= each.others.keys() for each in inputs)


def test_the_text_begins_with_the_last_token_of_the_image(source, inputs):
    image = json.loads((source / "config.json").read_text())["image_token_id"]
    for each in inputs:
        text = np.asarray(each.tokens)[0, -each.num_text :]
        assert text[0] == image
        assert image not in text[1:]


def test_the_answer_stands_at_the_end(source, images, inputs):
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    text = np.asarray(inputs[0].tokens)[0, -inputs[0].num_text :].tolist()
    asked, answer = images.prompts[0].question, images.prompts[0].answer
    assert text == tokenizer.encode(f"<|image_pad|><|vision_end|>{asked}{answer}").ids


def test_a_prompt_that_ends_with_its_image_leaves_the_reply(images, tmp_path):
    gemma = make_gemma(tmp_path / "gemma")
    found = image_inputs(open_model(gemma), images)
    tokenizer = Tokenizer.from_file(str(gemma / "tokenizer.json"))
    for prompt, each in zip(images.prompts, found, strict=True):
        text = np.asarray(each.tokens)[0, -each.num_text :].tolist()
        assert text == tokenizer.encode(f" Reply: {prompt.answer}").ids
    assert evaluated(gemma, gemma, images)[1].num_image_positions == sum(
        each.num_text for each in found
    )


def test_the_same_prompts_give_the_same_arrays(source, images, inputs):
    again = image_inputs(open_model(source), images)
    for one, other in zip(inputs, again, strict=True):
        assert mx.array_equal(one.tokens, other.tokens).item()
        assert mx.array_equal(one.others["pixel_values"], other.others["pixel_values"]).item()


def naive_image_kl(source: Path, other: Path, inputs: list[ModelInputs]) -> list[np.ndarray]:
    """KL at the tokens behind each image, of whole models in float64."""
    models = []
    for folder in (source, other):
        opened = open_model(folder)
        weights = {path: a.astype(mx.float32) for path, a in opened.lazy_weights().items()}
        opened.skeleton.load_weights(list(weights.items()), strict=False)
        models.append(opened.skeleton)
    found = []
    for each in inputs:
        p, q = (log_softmax(run_model(model, each)[0, -each.num_text :]) for model in models)
        found.append((np.exp(p) * (p - q)).sum(-1))
    return found


def log_softmax(logits: mx.array) -> np.ndarray:
    z = np.asarray(logits.astype(mx.float32), np.float64)
    z -= z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def evaluated(source: Path, other: Path, images: ImagePrompts | None) -> tuple[Quality, Quality]:
    tokens = np.random.default_rng(0).integers(3, 100, (4, 64))
    windows = replace(make_windows(tokens), images=images)
    original, found = MlxQuantizer(source, name="seer").evaluate(
        {"other": other}, {}, windows, on_step=lambda _step, _amount=1: None
    )
    return original, found["other"]


def test_figures_on_images_are_those_of_whole_models(source, images, inputs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    weights = dict(mx.load(str(other / "model.safetensors")))  # type: ignore[arg-type]
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] * 1.5
    mx.eval(weights)
    mx.save_safetensors(str(other / "model.safetensors"), weights, {"format": "pt"})
    kl = naive_image_kl(source, other, inputs)
    original, found = evaluated(source, other, images)
    assert (original.image_mean_kl_nats, original.num_images) == (0.0, 4)
    assert found.num_images == 4
    assert found.num_image_positions == sum(each.size for each in kl)
    assert found.image_mean_kl_nats == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)
    assert found.image_mean_kl_se_nats is not None
    assert found.image_mean_kl_se_nats > 0
    alone = evaluated(source, other, None)[1]
    assert alone.num_images == 0
    assert alone.image_mean_kl_nats is None
    assert alone.mean_kl_nats == pytest.approx(found.mean_kl_nats, rel=1e-5)


def test_a_model_without_a_tower_takes_no_images(tmp_path):
    with pytest.raises(ImagesError, match="no part that sees images"):
        require_tower(open_model(save("qwen3", tmp_path)))


def test_a_tower_that_is_left_out_sees_no_images(source, images):
    with pytest.raises(ImagesError, match="--text-only, --tower keep or 8"):
        MlxQuantizer(source, name="seer", tower="none").require_tower()


def test_a_model_without_a_processor_is_refused(source, images, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ImagesError, match="no preprocessor_config"):
        image_inputs(open_model(folder), images)


def test_a_processor_that_does_not_run_is_named(source, images, tmp_path):
    folder = changed(source, tmp_path / "source", "preprocessor_config.json", image_mean="grey")
    with pytest.raises(ImagesError, match=r"'Qwen2VLImageProcessor'.*without torch and without"):
        image_inputs(open_model(folder), images)


def test_code_of_the_model_s_own_is_not_run(source, images, inputs, tmp_path):
    own = {"AutoImageProcessor": "own.Own", "AutoProcessor": "own.Own"}
    folder = changed(source, tmp_path / "source", "preprocessor_config.json", auto_map=own)
    (folder / "own.py").write_text("raise SystemExit('ran')")
    (found, *_) = image_inputs(open_model(folder), images)
    assert mx.array_equal(found.others["pixel_values"], inputs[0].others["pixel_values"]).item()


def test_a_model_without_a_chat_template_is_refused(source, images, tmp_path):
    folder = changed(source, tmp_path / "source", "tokenizer_config.json", chat_template=None)
    with pytest.raises(ImagesError, match="no chat template"):
        image_inputs(open_model(folder), images)


def test_a_template_without_a_place_for_an_image_is_refused(source, images, tmp_path):
    template = "{% for message in messages %}text\n{% endfor %}"
    folder = changed(source, tmp_path / "source", "tokenizer_config.json", chat_template=template)
    with pytest.raises(ImagesError):
        image_inputs(open_model(folder), images)


def test_an_image_that_is_none_is_named_by_the_process_too(source):
    broken = ImagePrompt(name="broken.png", content=b"GIF89a", question="?")
    with pytest.raises(ImagesError, match=r"'broken\.png' is no PNG"):
        image_inputs(open_model(source), ImagePrompts(name="photos", prompts=(broken,)))


def test_images_to_evaluate_on_must_not_be_those_to_calibrate_on(images):
    rng = np.random.default_rng(0)
    held_out, calibration = (
        replace(make_windows(rng.integers(3, 100, (4, 64)), sha256=sha), images=images)
        for sha in ("a", "b")
    )
    with pytest.raises(ImagesError, match=r"'00\.png' is among those"):
        held_out.check_disjoint(calibration)
    held_out.check_disjoint(replace(calibration, images=None))


def test_windows_of_a_text_that_is_too_short_are_refused_before_the_images(source, images):
    with pytest.raises(TextError):
        MlxQuantizer(source, name="seer").evaluation_windows(make_text(), 1024, images)


def test_gradients_and_moments_on_images_are_those_of_the_whole_model(source, inputs):
    opened = open_model(source)
    weights = {path: each.astype(mx.float32) for path, each in opened.lazy_weights().items()}
    plain = open_model(source).skeleton
    plain.load_weights(list(weights.items()), strict=False)
    blocks = BlockModel(opened.skeleton)
    assert blocks.survey(dict(weights))
    text = mx.array(np.random.default_rng(0).integers(3, 100, (2, 24)), mx.int32)
    measurement = Measurement(
        blocks=blocks,
        load=lambda: dict(weights),
        batches=[text, *inputs],
        shapes={layer.path: layer.shape for layer in inventory_of(opened, ()).layers},
        gptq=False,
        seed=0,
        is_language=opened.runtime.is_language,
    )
    found: dict[str, Importance] = {}
    measure_importance(measurement, on_layers=lambda layers, _held: found.update(layers))
    expected = plain_importance(plain, measurement)
    assert found.keys() == expected.keys()
    for path, importance in expected.items():
        assert importance.terms, path
        for ours, theirs in zip(found[path].terms, importance.terms, strict=True):
            assert relative_error(ours.rows, theirs.rows) < 1e-3, path
            assert relative_error(ours.cols, theirs.cols) < 1e-3, path


def test_measuring_polishing_and_encoding_take_images_to_calibrate_on(source, images, tmp_path):
    quantizer = MlxQuantizer(source, name="seer")
    tokens = np.random.default_rng(0).integers(3, 100, (12, 64))
    windows, menu = replace(make_windows(tokens), images=images), parse_menu("3g32,4g64,8g64")
    effort, quiet = replace(EFFORTS["max"], num_polish_rounds=1), no_step
    table = quantizer.measure(
        windows, menu=menu, encoder="gptq", effort=effort, seed=0, on_step=quiet
    )
    assert table.calibration_images == images.facts
    plan = allocate(table.inventory, target_bpw=12.0)
    polished = quantizer.polish(
        table, {12.0: plan}, windows, effort=effort, keep_going=lambda: True, on_step=quiet
    )
    assert polished.keys() == {12.0}
    tmp_path.joinpath("out").mkdir()
    quantizer.encode(
        {tmp_path / "out": plan},
        windows,
        encoder="gptq",
        effort=effort,
        importance=table.importance,
        on_step=quiet,
    )
    assert evaluated(source, tmp_path / "out", images)[1].num_images == 4


def test_sensitivities_of_the_alignment_method_change_with_images(source, images):
    quantizer, (low, high) = MlxQuantizer(source, name="seer"), parse_menu("3g32,8g64")
    windows = make_windows(np.random.default_rng(0).integers(3, 100, (12, 64)))
    alone, seeing = (
        quantizer.align(each, low=low, high=high, on_step=no_step)
        for each in (windows, replace(windows, images=images))
    )
    assert alone.keys() == seeing.keys()
    assert alone != seeing


def no_step(_step: str, _amount: int = 1) -> None:
    pass
