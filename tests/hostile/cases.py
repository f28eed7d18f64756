"""Models made to harm the runner that opens them, each with its required outcome."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from dynquant.errors import Reason
from tests.hostile.damage import (
    INDEX,
    WEIGHTS,
    deep,
    edit_header,
    edit_json,
    edit_tokenizer,
    edit_weights,
    fifo,
    link,
    raw_header,
    shards,
    sparse,
    split_by,
    template,
    write,
)

__all__ = ["CASES", "LONG", "SECRET", "Case"]

SECRET = "hf_canaryOfTheOperatorCanary"
"""In a file beside the model's folder, `../secret`, which must not be published."""

NORM = "model.norm.weight"
ROWS = "model.embed_tokens.weight"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile model.

    Attributes:
        build: Changes a valid model in its folder.
        reason: Of its refusal; None if it is handled.
        says: A part of its sentence.
        step: The last step that is tried: `resolve` reads headers and config, `measure` all.
    """

    build: Callable[[Path], object]
    reason: Reason | None
    says: str = ""
    step: str = "resolve"


def refused(build: Callable[[Path], object], says: str = "", **more: Any) -> Case:
    """A model with invalid files."""
    return Case(**{"reason": Reason.INVALID_MODEL, "build": build, "says": says, **more})


def in_header(name: str, **changes: Any) -> Callable[[Path], object]:
    """A false entry of a tensor."""
    return partial(edit_header, change=lambda header: header[name].update(changes))


def in_config(**changes: Any) -> Callable[[Path], object]:
    """Keys of config.json."""
    return lambda folder: edit_json(folder, CONFIG, **changes)


def in_tokenizer_config(**changes: Any) -> Callable[[Path], object]:
    """Keys of tokenizer_config.json."""
    return lambda folder: edit_json(folder, TOKENIZER_CONFIG, **changes)


def moved(header: dict[str, Any], by: int) -> None:
    """The last tensor is `by` bytes further on."""
    last = max(header.values(), key=lambda entry: entry["data_offsets"][0])
    last["data_offsets"] = [each + by for each in last["data_offsets"]]


def entries(num_bytes: int) -> bytes:
    """A header of very many empty tensors."""
    one = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % number for number in range(num_bytes // 56)) + b"}"


def many(num: int, *, num_layers: int = 0) -> Callable[[Path], object]:
    """Very many tensors of one byte, and a config with as many layers."""

    def build(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
        header |= {
            f"model.x{at}": {
                "dtype": "U8",
                "shape": [1],
                "data_offsets": [len(data) + at, len(data) + at + 1],
            }
            for at in range(num)
        }
        raw_header(folder, json.dumps(header, separators=(",", ":")).encode(), data + bytes(num))
        if num_layers:
            edit_json(folder, CONFIG, num_hidden_layers=num_layers)

    return build


def with_vocabulary(num: int) -> Callable[[Path], object]:
    """A tokenizer of very many entries that occur in no text."""

    def build(folder: Path) -> None:
        model = json.loads((folder / TOKENIZER).read_text())["model"]
        first = len(model["vocab"])
        model["vocab"] |= {f"zz{number}": number for number in range(first, first + num)}
        edit_tokenizer(folder, model=model)

    return build


def renamed_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"weight": 1}))


def with_gap(folder: Path) -> None:
    edit_header(folder, lambda header: moved(header, 64))
    write(folder, WEIGHTS, (folder / WEIGHTS).read_bytes() + bytes(64))


def with_tail(folder: Path) -> None:
    """Weights that are also a zip archive, which is read from its end."""
    with (folder / WEIGHTS).open("ab") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data.pkl", "x")


def twice_in_a_header(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length].strip(), raw[8 + length :]
    entry = json.dumps({NORM: json.loads(header)[NORM]}).encode()
    raw_header(folder, header[:-1] + b"," + entry[1:], data)


def twice_in_shards(folder: Path) -> None:
    names = [str(name) for name in mx.load(str(folder / WEIGHTS))]
    shards(folder, [names, [NORM]])


def hundred_thousand_shards(folder: Path) -> None:
    weight_map = {f"t{n}": f"model-{n:06d}-of-100000.safetensors" for n in range(100_000)}
    write(folder, INDEX, json.dumps({"weight_map": weight_map}))


def index_of(target: str) -> Callable[[Path], object]:
    return lambda folder: write(folder, INDEX, json.dumps({"weight_map": {NORM: target}}))


def rename(name: str, new: str) -> Callable[[Path], object]:
    return partial(edit_header, change=lambda header: header.update({new: header.pop(name)}))


def array(name: str, make: Callable[[mx.array], mx.array]) -> Callable[[Path], object]:
    return partial(edit_weights, change=lambda weights: weights.update({name: make(weights[name])}))


def more(name: str, extra: mx.array) -> Callable[[Path], object]:
    return partial(edit_weights, change=lambda weights: weights.update({name: extra}))


def with_one(value: float) -> Callable[[mx.array], mx.array]:
    """The array with one element of this value."""

    def change(whole: mx.array) -> mx.array:
        flat = whole.reshape(-1)
        return mx.concatenate([mx.array([value], dtype=whole.dtype), flat[1:]]).reshape(whole.shape)

    return change


def normalizers(num: int) -> dict[str, Any]:
    """Each doubles the text."""
    one = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    return {"type": "Sequence", "normalizers": [one] * num}


def ids_from(start: int) -> Callable[[Path], object]:
    """Tokens without rows in the embedding."""

    def build(folder: Path) -> None:
        model = json.loads((folder / TOKENIZER).read_text())["model"]
        model["vocab"] = {token: start + number for token, number in model["vocab"].items()}
        edit_tokenizer(folder, model=model, added_tokens=[])

    return build


def with_code(name: str, **changes: Any) -> Callable[[Path], object]:
    """A module beside the model, and a file that names it to be loaded."""

    def build(folder: Path) -> None:
        edit_json(folder, name, **changes)
        write(folder, "m.py", "open('../ran', 'w')")

    return build


def named_template(folder: Path, target: str) -> None:
    (folder / "additional_chat_templates").mkdir()
    link(folder, "additional_chat_templates/tool_use.jinja", target)


def tokenizer_above(folder: Path) -> None:
    name = "../tokenizer.9.0.0.json"
    (folder / TOKENIZER).rename(folder / name)
    in_tokenizer_config(fast_tokenizer_files=[name])(folder)


def only_code(folder: Path) -> None:
    with_code(TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["m.T", None]})(folder)
    with_code(CONFIG, auto_map={"AutoConfig": "m.C"})(folder)
    (folder / TOKENIZER).unlink()


HEADERS: dict[str, Case] = {
    "shape larger than its data": refused(in_header(NORM, shape=[10**6]), "does not fit"),
    "shape smaller than its data": refused(in_header(NORM, shape=[1]), "does not fit"),
    "data beyond the file": refused(partial(edit_header, change=lambda h: moved(h, 64)), "not fit"),
    "tensors that overlap": refused(partial(edit_header, change=lambda h: moved(h, -2)), "overlap"),
    "a gap before a tensor": refused(with_gap, "belong to no tensor"),
    "an archive behind the tensors": refused(with_tail, "belong to no tensor"),
    "offsets below zero": refused(in_header(NORM, data_offsets=[-128, 0]), "does not fit"),
    "offsets that are fractions": refused(
        in_header(NORM, data_offsets=[0.0, 128.0]), "does not fit"
    ),
    "sizes below zero": refused(in_header(NORM, shape=[-8, -8]), "does not fit"),
    "sizes that are truth values": refused(in_header(NORM, shape=[True, 64]), "does not fit"),
    "a size of 2^70": refused(in_header(NORM, shape=[2**70, 0]), "does not fit"),
    "sizes whose product takes for ever": refused(
        in_header(NORM, shape=[10**4000] * 5000), "does not fit"
    ),
    "a number of 100,000 digits": refused(
        lambda f: raw_header(f, b'{"a":{"dtype":"U8","shape":[%s]}}' % (b"9" * 100_000)), "JSON"
    ),
    "a hundred thousand sizes": refused(in_header(NORM, shape=[1] * 100_000), "does not fit"),
    "a header of 100 MB": refused(lambda f: raw_header(f, entries(99_000_000)), "header"),
    "a header of 800,000 tensors": refused(lambda f: raw_header(f, entries(45_000_000)), "values"),
    "a header of 450,000 tensors": refused(many(450_000), "400,000 tensors"),
    "a header of lists without end": refused(
        lambda f: raw_header(f, b'{"a":[%s1]}' % (b"[]," * 4_000_000)), "values"
    ),
    "a header of 100 MB of one text": refused(
        lambda f: raw_header(f, b'{"__metadata__":{"x":"%s"}}' % (b"a" * 99_000_000)), "header"
    ),
    "a header as long as 2^63": refused(
        lambda f: write(f, WEIGHTS, b"\0" * 7 + b"\x80{}"), "short"
    ),
    "a header of lists within lists": refused(
        lambda f: raw_header(f, deep(200_000).encode()), "not JSON"
    ),
    "one name twice in a header": refused(twice_in_a_header, "twice"),
    "one name in two shards": refused(twice_in_shards, "both in"),
    "a type that there is not": refused(in_header(NORM, dtype="F7"), NORM),
    "a pickle by another name": refused(
        lambda f: write(f, WEIGHTS, pickle.dumps({"weight": [1.0] * 99})), "corrupt"
    ),
    "an archive by another name": refused(renamed_zip, "corrupt"),
    "compressed weights": refused(
        lambda f: write(f, WEIGHTS, gzip.compress(bytes(10**8))), "corrupt"
    ),
    "a name that turns the line around": refused(
        rename(NORM, "\u202emron.ledom\0\n\x1b[2J"), "do not fit"
    ),
    "a name of a million letters": refused(rename(NORM, "x" * 10**6), "do not fit"),
    "a name that is half a letter": refused(rename(NORM, "\ud800"), "do not fit"),
}

INDEXES: dict[str, Case] = {
    "an index that leads out of the folder": refused(
        index_of("../../model.safetensors"), "plain names"
    ),
    "an index that names a place on the disk": refused(index_of("/etc/passwd"), "plain names"),
    "an index with a name of NUL and escapes": refused(
        index_of("a\0\x1b[2J\n\u202e"), "plain names"
    ),
    "an index of 100,000 shards": refused(hundred_thousand_shards, "100000 weight file(s)"),
    "an index of lists within lists": refused(lambda f: write(f, INDEX, deep(200_000)), "index"),
    "an index of 4 million entries": refused(
        lambda f: write(f, INDEX, '{"weight_map":{%s"a":"b"}}' % ('"a":"b",' * 4_000_000)), "values"
    ),
    "an index of 2 GB": refused(partial(sparse, name=INDEX, num_bytes=2 << 30), "larger than"),
}

FILES: dict[str, Case] = {
    "weights that lead elsewhere": refused(partial(link, name=WEIGHTS, target="../secret"), "link"),
    "a license that leads to a secret": refused(
        partial(link, name="LICENSE", target="../secret"), "link"
    ),
    "a tokenizer that leads to a secret": refused(
        partial(link, name="tokenizer.model", target="../secret"), "link"
    ),
    "a named template that leads to a secret": refused(
        partial(named_template, target="../../secret"), "link"
    ),
    "a named template without an end": refused(partial(named_template, target="/dev/zero"), "link"),
    "named templates that lead elsewhere": refused(
        partial(link, name="additional_chat_templates", target="../job"), "link"
    ),
    "a config that is a link to itself": refused(partial(link, name=CONFIG, target=CONFIG), "link"),
    "weights that are a link to themselves": refused(
        partial(link, name=WEIGHTS, target=WEIGHTS), "link"
    ),
    "weights without an end": refused(partial(link, name=WEIGHTS, target="/dev/zero"), "link"),
    "a tokenizer without an end": refused(
        partial(link, name=TOKENIZER, target="/dev/zero"), "link"
    ),
    "a config that nobody writes": refused(partial(fifo, name=CONFIG), "neither"),
    "weights that nobody writes": refused(partial(fifo, name=WEIGHTS), "neither"),
    "a tokenizer that nobody writes": refused(partial(fifo, name=TOKENIZER), "neither"),
    "a tokenizer of 2 GB": refused(partial(sparse, name=TOKENIZER, num_bytes=2 << 30), "larger"),
    "a config of 1 GB": refused(partial(sparse, name=CONFIG, num_bytes=1 << 30), "larger"),
    "a vocabulary of 1 GB": refused(
        partial(sparse, name="vocab.json", num_bytes=1 << 30), "larger"
    ),
}

ARRAYS: dict[str, Case] = {
    "a weight that is NaN": Case(
        build=array(ROWS, with_one(float("nan"))), reason=Reason.NON_FINITE, step="measure"
    ),
    "a weight that is infinite": Case(
        build=array(ROWS, with_one(float("inf"))), reason=Reason.NON_FINITE, step="measure"
    ),
    "a norm that is NaN": Case(
        build=array(NORM, with_one(float("nan"))), reason=Reason.NON_FINITE, step="measure"
    ),
    "weights at the end of what a float holds": Case(
        build=array(ROWS, lambda w: w * 0 + 3e38), reason=Reason.NON_FINITE, step="measure"
    ),
    "weights too small for a float": Case(
        build=array(ROWS, lambda w: w * 1e-38), reason=None, step="measure"
    ),
    "weights that are all zero": Case(
        build=array(ROWS, lambda w: w * 0), reason=None, step="measure"
    ),
    "an array without sizes": refused(more("model.extra", mx.array(1.0)), "do not fit"),
    "an array without elements": refused(more("model.extra", mx.zeros((0, 64))), "do not fit"),
    "a norm without elements": refused(array(NORM, lambda w: w[:0]), "do not fit"),
    "a norm without sizes": refused(array(NORM, lambda w: w[0]), "do not fit"),
    "weights of truth values": Case(
        build=array(NORM, lambda w: w > 0), reason=None, step="measure"
    ),
}


def absurd() -> Iterator[tuple[str, Case]]:
    """Impossible numbers in config.json."""
    for key, value in (
        ("num_hidden_layers", 2**62),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**7),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 1.5),
        ("hidden_size", 2**62),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", float("nan")),
        ("hidden_size", "64"),
        ("hidden_size", [64]),
        ("vocab_size", 2**40),
        ("vocab_size", 10**12),
        ("num_experts", 10**8),
        ("moe_num_experts", 10**8),
        ("layer_types", ["full_attention"] * 10**5),
        ("hybrid_override_pattern", "M" * 10**6),
        ("intermediate_size", 10**30),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 2**31),
        ("head_dim", -32),
        ("head_dim", 10**12),
        ("rms_norm_eps", "x"),
        ("rope_theta", {"a": deep(50)}),
        ("rope_scaling", "linear"),
        ("tie_word_embeddings", "no"),
    ):
        name = f"{key} of {str(value)[:20]}"
        yield name, refused(in_config(**{key: value}), step="measure")


CONFIGS: dict[str, Case] = {
    **dict(absurd()),
    "more layers than any model has, with tensors for all": refused(
        many(20_000, num_layers=20_000), "20000 layers"
    ),
    "experts in every layer that are too many together": refused(
        in_config(num_hidden_layers=14, num_experts=10_000), "7,142"
    ),
    "a config of a million lists": refused(
        lambda f: edit_json(f, CONFIG, zz=[[]] * 10**6), "values"
    ),
    "a context of 2^62": Case(
        build=in_config(max_position_embeddings=2**62), reason=Reason.UNFIT_TEXT, step="measure"
    ),
    "a context that is NaN": refused(
        in_config(max_position_embeddings=float("nan")), "max_position", step="measure"
    ),
    "a config of lists within lists": refused(lambda f: write(f, CONFIG, deep(200_000)), "JSON"),
    "a config that is as deep as Python goes": refused(
        lambda f: write(f, CONFIG, '{"model_type":"qwen3","x":' + deep(900) + "}"), "deep"
    ),
    "a compressed config": refused(lambda f: write(f, CONFIG, gzip.compress(b" " * 10**8)), "JSON"),
    "code of its own": Case(build=in_config(model_file="m.py"), reason=Reason.OWN_CODE),
    "code of its own by auto_map": Case(
        build=with_code(CONFIG, auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}),
        reason=None,
        step="measure",
    ),
    "an architecture that is a path": Case(
        build=in_config(model_type="../../../tmp/x"), reason=Reason.UNKNOWN_ARCHITECTURE
    ),
    "an architecture that is another module": refused(in_config(model_type="cache"), "'cache'"),
    "an architecture of escapes": Case(
        build=in_config(model_type="\x1b[2J\u202e\n\0\ud800<script>"),
        reason=Reason.UNKNOWN_ARCHITECTURE,
    ),
    "an architecture of a million letters": Case(
        build=in_config(model_type="x" * 10**6), reason=Reason.UNKNOWN_ARCHITECTURE
    ),
}

TOKENIZERS: dict[str, Case] = {
    "a tokenizer that brings code": Case(
        build=with_code(
            TOKENIZER_CONFIG, auto_map={"AutoTokenizer": ["m.T", None]}, tokenizer_class="T"
        ),
        reason=None,
        step="measure",
    ),
    "a tokenizer that is only code": Case(
        build=only_code, reason=Reason.OWN_CODE, says="tokenizer", step="measure"
    ),
    "a tokenizer in a folder above": refused(tokenizer_above, "no vocabulary", step="measure"),
    "a tokenizer class that is a command": Case(
        build=in_tokenizer_config(tokenizer_class="os.system"), reason=None, step="measure"
    ),
    "a template type that is a path": refused(
        in_tokenizer_config(chat_template_type="../../../tmp/x"), "tokenizer", step="measure"
    ),
    "a tool parser that is a path": refused(
        in_tokenizer_config(tool_parser_type="..os"), "tokenizer", step="measure"
    ),
    "a tokenizer that looks back for ever": refused(
        partial(edit_tokenizer, pre_tokenizer=split_by(r"(?:\w+\s?)+\d{9}")),
        "tokenizer",
        step="measure",
    ),
    "a pattern that is none": refused(
        partial(edit_tokenizer, pre_tokenizer=split_by("(")), "tokenizer", step="measure"
    ),
    "a text that doubles forty times": Case(
        build=partial(edit_tokenizer, normalizer=normalizers(40)),
        reason=Reason.TAKES_TOO_LONG,
        step="measure",
    ),
    "a vocabulary of 4 million tokens": refused(
        with_vocabulary(4_000_000), "'tokenizer.json' holds more than"
    ),
    "tokens without a row": refused(ids_from(10**6), "token", step="measure"),
    "tokens beyond every number": refused(ids_from(2**32 - 200), "token", step="measure"),
    "a tokenizer of lists within lists": refused(
        lambda f: write(f, TOKENIZER, deep(200_000)), "tokenizer", step="measure"
    ),
    "a compressed tokenizer": refused(
        lambda f: write(f, TOKENIZER, gzip.compress(b" " * 10**8)), "tokenizer", step="measure"
    ),
}


def a_template(text: str, reason: Reason | None = None) -> Case:
    """A chat template; if it is `handled`, chats are read without it."""
    return Case(build=partial(template, text=text), reason=reason, step="measure")


def templates(folder: Path, *texts: str) -> None:
    """Named chat templates in files of their own."""
    for number, text in enumerate(texts):
        place = folder / "additional_chat_templates" / f"{number}.jinja"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)


LOOP = "{% for a in range(99999) %}"
TEMPLATES: dict[str, Case] = {
    "a template that loops for ever": a_template(
        LOOP * 4 + "{% endfor %}" * 4, Reason.TAKES_TOO_LONG
    ),
    "a template that fills the memory": a_template("{{ 'a' * 10**12 }}"),
    "a template that fills the memory slowly": a_template(
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x }}",
        Reason.TAKES_TOO_LONG,
    ),
    "a template that writes without end": a_template(LOOP + "{{ messages }}{% endfor %}"),
    "a template that reaches for Python": a_template(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    ),
    "a template that reaches for the system": a_template(
        "{{ cycler.__init__.__globals__.os.system('touch ../ran') }}"
    ),
    "a template that includes a file": a_template("{% include '../secret' %}"),
    "a template that is none": a_template("{% for %}"),
    "a named template that loops for ever": Case(
        build=lambda f: templates(f, LOOP * 4 + "{% endfor %}" * 4),
        reason=Reason.TAKES_TOO_LONG,
        step="measure",
    ),
    "a named template that is none beside one that refuses everything": Case(
        build=lambda f: templates(f, "{% for %}", "{{ raise_exception('no') }}"),
        reason=None,
        step="measure",
    ),
    "a template that refuses everything": a_template("{{ raise_exception('no') }}"),
    "a template that calls itself": a_template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "a template that divides by zero": a_template("{{ 1 / 0 }}"),
    "a template of lists within lists": a_template("{{ " + deep(5000) + " }}"),
    "a template that is a list": refused(
        in_tokenizer_config(chat_template=[{"name": 1}]), "tokenizer", step="measure"
    ),
}

LONG = {
    "a header of 100 MB",
    "a header of 450,000 tensors",
    "a vocabulary of 4 million tokens",
    "an index of 4 million entries",
    "a template that fills the memory slowly",
    "a template that writes without end",
    "a text that doubles forty times",
    "compressed weights",
    "an index of 100,000 shards",
}
"""Cases that take seconds; the others take a few hundredths of a second."""

CASES: dict[str, Case] = {
    **HEADERS, **INDEXES, **FILES, **ARRAYS, **CONFIGS, **TOKENIZERS, **TEMPLATES,
}  # fmt: skip
