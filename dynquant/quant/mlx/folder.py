"""Check a model folder before anything reads it: files, config, safetensors headers, index.

The files come from strangers, so sizes are checked before they are believed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynquant.errors import InvalidModelError, ModelNotFoundError, Reason, UnsupportedModelError
from dynquant.model.files import (
    CONFIG,
    INDEX,
    LFS_POINTER,
    has_odd_name,
    is_fetched,
    is_subfolder,
    is_taken_over,
    is_weights,
    lfs_pointer_found,
)
from dynquant.model.limits import (
    MAX_CONFIG_VALUES,
    MAX_EXPERTS,
    MAX_JSON_VALUES,
    MAX_LAYERS,
    MAX_SMALL_FILE_BYTES,
    MAX_SMALL_FILES,
    file_too_large,
    require_few_values,
    too_many_files,
)
from dynquant.model.quantized_sources import Tensor
from dynquant.model.weight_files import WeightFiles, chosen_files, is_settled, weight_map_in
from dynquant.quant.mlx.headers import Header, read_header, read_headers

__all__ = [
    "as_loaded",
    "check_folder",
    "fingerprint",
    "has_processor",
    "read_config",
    "stamps",
    "taken_over",
    "tensors_of",
    "weight_files",
    "weights_of",
]

logger = logging.getLogger(__name__)

_NUM_LAYERS = re.compile(r"(num|n)_([a-z]+_)*layers?")
_NUM_EXPERTS = re.compile(r"([a-z]+_)*(num|n)_([a-z]+_)*experts")
_LAYER_LIST = re.compile(r"([a-z]+_)*(layer|layers|pattern)(_[a-z]+)*")
"""Keys of texts and lists that have an entry for each layer."""
_OF_QUANTS = ("quantization", "quantization_config", "compression_config")
"""Parts of a config from which no layers are made; lists in them may name every tensor."""
_MAX_DEPTH = 64
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_READ_WHOLE = (".json", ".jsonl", ".txt", ".jinja", ".model", ".tiktoken", ".md")
_MAX_POINTER_BYTES = 1024  # Git LFS's own bound
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weights_of(folder: Path) -> WeightFiles:
    """The weight files that count, and what of the model is not read.

    Raises:
        InvalidModelError: Weights are corrupt, missing, or there twice.
    """
    return _chosen(folder, read_headers(_candidates(folder)))


def weight_files(folder: Path) -> list[Path]:
    """The weight files that count, by name.

    Raises:
        InvalidModelError: As `weights_of`.
    """
    files = _candidates(folder)
    if is_settled([file.name for file in files], _weight_map(folder)):
        return files
    return [folder / name for name in weights_of(folder).read]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Name → dtype and shape of every tensor in the weight files that count."""
    headers = map(read_header, weight_files(folder))
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]))
        for header in headers
        for name, entry in header.items()
    }


@contextmanager
def as_loaded(folder: Path, config: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """`folder` for a loader that reads every `model*.safetensors` in it: only those that count.

    Arrays that are loaded from there may be read after the context too: MLX keeps its files open.

    Args:
        folder: A model's folder.
        config: In the place of its config, in a folder without Python files: for loaders that run
            code that they find.

    Raises:
        InvalidModelError: As `weights_of`.
    """
    counts, candidates = weight_files(folder), _candidates(folder)
    if counts == candidates and config is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dynquant-weights-") as links:
        for path in folder.iterdir():
            is_in_place = config is not None and (path.name == CONFIG or path.suffix == ".py")
            if path.is_file() and (path in counts or path not in candidates) and not is_in_place:
                (Path(links) / path.name).symlink_to(path.resolve())
        if config is not None:
            (Path(links) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        yield Path(links)


def has_processor(folder: Path) -> bool:
    """Whether a folder says how images or sounds become a model's input."""
    return any((folder / name).is_file() for name in _PROCESSORS)


def taken_over(folder: Path) -> list[str]:
    """Names within `folder` of the files that a quantized model takes over, sorted."""
    names = (path.relative_to(folder).as_posix() for path in _paths(folder) if path.is_file())
    return sorted(filter(is_taken_over, names))


def stamps(folder: Path) -> tuple[tuple[int, ...], ...]:
    """Marks that change with the weight files, which every pass over the model opens again."""

    def stamp(file: Path) -> tuple[int, ...]:
        try:
            about = file.stat()
        except OSError:  # a link to nowhere, which `check_folder` refuses
            return ()
        return about.st_ino, about.st_size, about.st_mtime_ns

    return tuple(map(stamp, _candidates(folder)))


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder that cannot be a model of ours; return its config.

    Files that stock mlx-lm loads make a folder sound, whatever else lies there.

    Raises:
        ModelNotFoundError: There is no such folder.
        InvalidModelError: No usable `config.json`, weights that are truncated, corrupt, missing
            or there twice, or files of no sound model.
        UnsupportedModelError: Remote code, or only pickled weights.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"There is no model folder '{folder}'. Pass a folder that holds a config.json, "
            "or a Hub id such as 'Qwen/Qwen3-0.6B'."
        )
    _check_files(folder)
    config = read_config(folder)
    if config.get("model_file") is not None:
        raise UnsupportedModelError(
            "This model brings its own Python code ('model_file' in config.json), and dynquant "
            "never runs code from a model. Ask its author for a version that mlx-lm supports.",
            reason=Reason.OWN_CODE,
        )
    files = _candidates(folder)
    if not files:
        if any(any(folder.glob(pattern)) for pattern in _PICKLED):
            raise UnsupportedModelError(
                "This model has only PyTorch weights (.bin or .pt), which can run code when "
                "opened. Convert them to safetensors first, for example with "
                "https://huggingface.co/spaces/safetensors/convert.",
                reason=Reason.PICKLED_WEIGHTS,
            )
        raise InvalidModelError(
            "There are no weights here: no file matches 'model*.safetensors'. "
            "Pass a folder that holds the weights too.",
            reason=Reason.NO_WEIGHTS,
        )
    headers = read_headers(files)
    chosen = _chosen(folder, headers)
    for note in chosen.notes:
        logger.info(note)
    _check_layers(config, sum(len(headers[name]) for name in chosen.read))
    return config


def fingerprint(folder: Path) -> str:
    """Hash that names the weights: config and every shard's header, size and first and last bytes.

    Reading every byte of a 100 GB model to name it would cost minutes; the header,
    the size and a sample of the data tell models apart all the same.
    """
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = stream.read(8 + int.from_bytes(stream.read(8), "little"))
            digest.update(f"{file.name}:{size}".encode() + header)
            for position in range(0, size, max(1, size // 64)):
                stream.seek(position)
                digest.update(stream.read(4096))
    return digest.hexdigest()


def _candidates(folder: Path) -> list[Path]:
    """The weight files that mlx-lm reads, by name."""
    return sorted(path for path in folder.iterdir() if is_weights(path.name))


def _paths(folder: Path) -> Iterator[Path]:
    """Files at the top of a model's folder, and in those of its folders that matter."""
    for path in folder.iterdir():
        yield path
        if is_subfolder(path.name) and path.is_dir():
            yield from path.iterdir()


def _check_files(folder: Path) -> None:
    """Refuse what is not a plain file of this folder, and what is too large to be read whole."""
    root, num_taken_over = folder.resolve(), 0
    for path in _paths(folder):
        full_name = path.relative_to(folder).as_posix()
        name = full_name[:100]
        try:
            about, target = path.stat(), path.resolve()
        except (OSError, RuntimeError):
            raise InvalidModelError(
                f"'{name}' is a link to nowhere or to itself. Put the file in its place, or "
                "download it again."
            ) from None
        if path.is_symlink() and not (target.is_relative_to(root) or _is_blob(target)):
            raise InvalidModelError(
                f"'{name}' is a link that leads out of the model's folder, and its content might "
                "be published. Put the file in its place."
            )
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise InvalidModelError(f"'{name}' is neither a file nor a folder. Remove it.")
        is_kept = is_taken_over(full_name)
        if about.st_size > MAX_SMALL_FILE_BYTES and (is_kept or path.suffix in _READ_WHOLE):
            raise file_too_large(name)
        if is_kept and has_odd_name(full_name):
            raise InvalidModelError(f"No file of a model needs a name like '{name}'. Rename it.")
        if is_kept and path.suffix == ".json" and about.st_size > MAX_JSON_VALUES:
            require_few_values(path.read_bytes(), name)
        num_taken_over += is_kept
        if stat.S_ISREG(about.st_mode) and _is_lfs_pointer(path, full_name, about.st_size):
            raise lfs_pointer_found(name)
    if num_taken_over > MAX_SMALL_FILES:
        raise too_many_files(num_taken_over)


def _is_lfs_pointer(path: Path, name: str, num_bytes: int) -> bool:
    """Whether a file that is needed is only a pointer to it."""
    if num_bytes > _MAX_POINTER_BYTES or not (is_weights(name) or is_fetched(name)):
        return False
    with path.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _is_blob(target: Path) -> bool:
    """Whether huggingface_hub keeps this file in a cache, to which its snapshots link."""
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def _check_layers(config: Mapping[str, Any], num_tensors: int) -> None:
    """Refuse more layers than there are tensors, or than any model has, and as many experts.

    Modules are made for each before a weight is looked at, and would fill the memory.
    """
    num_layers = 1
    settings = tuple(_settings(config))
    for key, value in settings:
        if isinstance(value, int) and _NUM_LAYERS.fullmatch(key):
            if value > num_tensors:
                raise InvalidModelError(
                    f"config.json says that '{key}' is {str(value)[:20]}, and the weights are only "
                    f"{num_tensors:,}. Take config and weights from one version of the model."
                )
            _require_at_most(MAX_LAYERS, "layers", key, value)
            num_layers = max(num_layers, value)
        elif isinstance(value, str | list) and _LAYER_LIST.fullmatch(key):
            _require_at_most(MAX_LAYERS, "layers", key, len(value))
    for key, value in settings:
        if isinstance(value, int) and _NUM_EXPERTS.fullmatch(key):
            _require_at_most(MAX_EXPERTS // num_layers, "experts in each layer", key, value)


def _require_at_most(most: int, noun: str, key: str, asked: int) -> None:
    if asked > most:
        raise InvalidModelError(
            f"config.json asks by '{key[:100]}' for {str(asked)[:20]} {noun}, and no model that we "
            f"know has more than {most:,}. Ask the model's author."
        )


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict) and key not in _OF_QUANTS:
            yield from _settings(value)


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted no further than needed."""
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for some in inner for each in some if isinstance(each, dict | list) and each]
        depth += 1
    return depth


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder.

    Raises:
        InvalidModelError: It is missing, no JSON object, too large or too deep, or names no family.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidModelError(
            f"'{folder}' has no config.json, so it is no model folder. "
            "Pass the folder that holds config.json and the safetensors files."
        )
    raw = path.read_bytes()
    require_few_values(raw, CONFIG, MAX_CONFIG_VALUES)
    try:
        config = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(
            "config.json is not valid JSON. Download that file again, or ask the model's author."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InvalidModelError(
            "config.json names no model_type, which tells the architecture. Add it, or take a "
            "model for transformers or mlx-lm."
        )
    if _depth(config) > _MAX_DEPTH:
        raise InvalidModelError("config.json is nested too deep. Ask the model's author.")
    return config


def _chosen(folder: Path, headers: Header) -> WeightFiles:
    return chosen_files(headers, _weight_map(folder))


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor → file of the index; empty without one."""
    path = folder / INDEX
    return weight_map_in(path.read_bytes()) if path.is_file() else {}
