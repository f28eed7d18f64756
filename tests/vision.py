"""Tiny random models that see images, in the layouts of the Hub, with their processors."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from examples import vision_model
from tests.families import save

__all__ = ["make_gemma", "make_vision_model"]


def make_vision_model(folder: Path) -> Path:
    """Write the model into `folder`: a random Qwen3 of two blocks with a random tower."""
    language = folder.with_name(f"{folder.name}-language")
    language.mkdir(parents=True)
    vision_model.make_vision_model(save("qwen3", language), folder)
    return folder


def make_gemma(folder: Path) -> Path:
    """Write a random Gemma 3 with its processor, in whose prompts the image ends the question."""
    from tests.vlm_families import save as save_seeing  # of the extra `vlm`

    save_seeing("gemma3", folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.get_vocab_size()
    unnamed = [f"<|{token}|>" for token in range(first, config["image_token_index"])]
    names = ("<image_soft_token>", "<unused>", "<start_of_image>", "<end_of_image>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (*unnamed, *names)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _add(
        folder / "tokenizer_config.json",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %} Reply: ",
        extra_special_tokens={
            "image_token": names[0],
            "boi_token": names[2],
            "eoi_token": names[3],
        },
    )
    length = config["text_config"]["mm_tokens_per_image"]
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": length}
    side = config["vision_config"]["image_size"]
    _add(
        folder / "preprocessor_config.json",
        **processor,
        image_processor_type="Gemma3ImageProcessor",
        size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    _add(folder / "processor_config.json", **processor)
    return folder


def _add(file: Path, **fields: object) -> None:
    raw = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(raw | fields))
