from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from dynquant.errors import InvalidModelError, TextError
from dynquant.quant.mlx.calibration import Windows, cut_windows, window_length
from dynquant.quant.mlx.tokenizing import open_tokenizer
from dynquant.texts.documents import Chat, Text
from tests.quant.mlx.factories import save_model

MESSAGES = ({"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello you"})
CHAT = Chat(messages=MESSAGES)


class FakeTokenizer:
    """One token per word; ids in the order in which the words turn up."""

    has_chat_template = False

    def __init__(self, first: Sequence[int] = (), last: Sequence[int] = ()) -> None:
        self.first, self.last = first, last
        self.ids: dict[str, int] = {}
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if text == "a":  # asked to see what comes before a text
            return [*self.first, 0, *self.last] if add_special_tokens else [0]
        assert not add_special_tokens  # a window is cut out of running text
        self.encoded.append(text)
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]


class ChatTokenizer(FakeTokenizer):
    has_chat_template = True

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool) -> str:
        assert not tokenize
        if any(m["content"] == "too hard" for m in messages):
            raise ValueError("Roles must alternate.")
        return "".join(f"<{m['role']}> {m['content']} <end> " for m in messages)


def text_of(*documents, name: str = "text.txt") -> Text:
    return Text(name=name, documents=lambda: iter(documents))


def words(count: int, *, start: int = 0) -> str:
    """Running text in which every word is another one."""
    return " ".join(f"w{i}" for i in range(start, start + count))


def chat_of(*contents: str, system: str | None = None) -> Chat:
    """A chat of a user and an assistant who take turns."""
    first = () if system is None else ({"role": "system", "content": system},)
    roles = itertools.cycle(("user", "assistant"))
    turns = tuple(
        {"role": role, "content": said} for role, said in zip(roles, contents, strict=False)
    )
    return Chat(messages=first + turns)


def cut(text: Text, tokenizer=None, **overrides):
    fields = {"window_tokens": 64, "num_windows": 4, "min_windows": 2}
    return cut_windows(text, tokenizer or FakeTokenizer(), **fields | overrides)


def test_windows_are_spread_evenly_over_the_text():
    windows = cut(text_of(words(64 * 31)))
    assert windows.tokens.shape == (4, 64)
    assert windows.tokens[:, 0].tolist() == [0, 640, 1280, 1920]
    assert windows.tokens.dtype == np.int32
    assert (np.diff(windows.tokens) == 1).all()  # each is running text


def test_every_window_begins_with_the_tokens_that_the_tokenizer_puts_before_a_text():
    windows = cut(text_of(words(63 * 31)), FakeTokenizer(first=[9000], last=[9001]))
    assert windows.tokens.shape == (4, 64)
    assert windows.tokens[:, 0].tolist() == [9000] * 4
    assert windows.tokens[:, 1].tolist() == [0, 630, 1260, 1890]
    assert (np.diff(windows.tokens[:, 1:]) == 1).all()
    assert windows.facts.num_tokens == 4 * 64


def test_a_chat_whose_template_begins_as_the_tokenizer_does_begins_so_once():
    chats = [chat_of(words(50, start=50 * i)) for i in range(10)]
    windows = cut(text_of(*chats), ChatTokenizer(first=[0]))  # the first word's id
    assert windows.tokens[0, :3].tolist() == [0, 1, 2]


def test_tokens_before_a_text_hide_no_overlap():
    tokenizer = FakeTokenizer(first=[9000])
    calibration = cut(text_of(words(63 * 31)), tokenizer)
    held_out = cut(text_of(words(700, start=100)), tokenizer)
    with pytest.raises(TextError, match="shares 100%"):
        held_out.check_disjoint(calibration)
    cut(text_of(words(700, start=5000)), tokenizer).check_disjoint(calibration)


def test_a_short_text_gives_fewer_windows_and_none_twice():
    windows = cut(text_of(words(64 * 3 + 10)))
    assert windows.tokens[:, 0].tolist() == [0, 64, 128]
    assert windows.facts.num_tokens == 192


def test_reading_of_a_long_text_stops_early():
    seen: list[int] = []

    def endless() -> Iterator[str]:
        for i in itertools.count():
            seen.append(i)
            yield words(1000, start=1000 * i)

    windows = cut(Text(name="endless", documents=endless))
    assert len(seen) <= 32 * 4 * 64 // 1000 + 1
    assert windows.tokens.max() > 7000  # spread over all that was read


def test_a_long_document_is_tokenized_in_chunks():
    tokenizer = FakeTokenizer()
    cut(text_of("word " * 500_000), tokenizer, window_tokens=512, num_windows=64)
    assert max(map(len, tokenizer.encoded)) <= (1 << 20) + 2


def test_documents_are_joined_by_an_empty_line():
    tokenizer = FakeTokenizer()
    cut(text_of(words(100), words(100, start=100)), tokenizer)
    assert tokenizer.encoded[0] == words(100)
    assert tokenizer.encoded[1] == "\n\n" + words(100, start=100)


@pytest.mark.parametrize("count", [0, 1, 127])
def test_a_text_too_short_is_refused_with_the_number_of_tokens_needed(count):
    with pytest.raises(TextError, match=rf"'text.txt' has {count} tokens, .* 128 ") as raised:
        cut(text_of(words(count)))
    assert raised.value.num_tokens_needed == 128


def test_a_text_without_documents_is_too_short():
    with pytest.raises(TextError) as raised:
        cut(text_of())
    assert raised.value.num_tokens_needed == 128


def test_facts_describe_the_windows():
    facts = cut(text_of(words(64 * 31), name="novel.txt")).facts
    assert (facts.name, facts.num_tokens, facts.window_tokens) == ("novel.txt", 256, 64)
    assert not facts.chat_formatted
    assert len(facts.sha256) == 64
    assert facts.sha256 == cut(text_of(words(64 * 31), name="other")).facts.sha256
    assert facts.sha256 != cut(text_of(words(64 * 30))).facts.sha256


def test_chats_go_through_the_chat_template():
    tokenizer = ChatTokenizer()
    windows = cut(text_of(*[CHAT] * 40), tokenizer)
    assert tokenizer.encoded[0] == "<user> hi there <end> <assistant> hello you <end> "
    assert windows.facts.chat_formatted
    assert (windows.facts.num_chats, windows.facts.num_chats_formatted) == (40, 40)
    assert windows.facts.chat_refusal == ""


def test_with_one_refused_chat_a_text_is_not_chat_formatted(caplog):
    chats = [chat_of("too hard" if i else "hi there", words(40, start=40 * i)) for i in range(40)]
    tokenizer = ChatTokenizer()
    facts = cut(text_of(*chats), tokenizer).facts
    assert tokenizer.encoded[1] == f"\n\ntoo hard\n\n{words(40, start=40)}"
    assert (facts.num_chats, facts.num_chats_formatted) == (40, 1)
    assert not facts.chat_formatted
    assert facts.chat_refusal == "ValueError"  # the words are not in the template itself
    assert "wrote 1 of 40 chats of 'text.txt'" in caplog.text
    assert "It refused the first of them: Roles must alternate." in caplog.text


def test_plain_text_among_chats_is_not_chat_formatted():
    facts = cut(text_of(*[CHAT] * 20, words(300)), ChatTokenizer()).facts
    assert facts.num_chats == facts.num_chats_formatted == 20
    assert not facts.chat_formatted


def test_chats_are_plain_text_to_a_model_without_a_template():
    tokenizer = FakeTokenizer()
    windows = cut(text_of(*[CHAT] * 40), tokenizer)
    assert tokenizer.encoded[0] == "\n\nhi there\n\nhello you"
    assert not windows.facts.chat_formatted
    assert (windows.facts.num_chats, windows.facts.num_chats_formatted) == (40, 0)
    assert windows.facts.chat_refusal == ""


def test_a_message_without_content_gives_no_plain_text():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    tokenizer = FakeTokenizer()
    cut(text_of(*[Chat(messages=(MESSAGES[0], call, MESSAGES[1]))] * 40), tokenizer)
    assert tokenizer.encoded[0] == "\n\nhi there\n\nhello you"


def test_plain_text_gets_no_template():
    tokenizer = ChatTokenizer()
    assert not cut(text_of(words(300)), tokenizer).facts.chat_formatted
    assert tokenizer.encoded == [words(300)]


def pair(calibration: Text, evaluation: Text):
    tokenizer = FakeTokenizer()
    return cut(calibration, tokenizer, num_windows=8), cut(evaluation, tokenizer, num_windows=8)


@pytest.mark.parametrize("name", ["text.txt", "other.txt"])
def test_evaluating_on_the_calibration_text_is_refused_under_any_name(name):
    calibration, evaluation = pair(text_of(words(2000)), text_of(words(2000), name=name))
    with pytest.raises(TextError, match=f"'{name}' shares 100% of its text"):
        evaluation.check_disjoint(calibration)


def test_another_stretch_of_the_same_windows_is_refused():
    """The calibration read the text from its start, the evaluation begins elsewhere in it."""
    calibration, evaluation = pair(text_of(words(4000)), text_of(words(2000, start=777)))
    with pytest.raises(TextError, match="shares 100%"):
        evaluation.check_disjoint(calibration)


def test_a_text_that_overlaps_in_part_is_refused():
    calibration, evaluation = pair(text_of(words(2000)), text_of(words(2000, start=1500)))
    with pytest.raises(TextError, match=r"shares \d\d% of its text"):
        evaluation.check_disjoint(calibration)


def test_texts_that_share_single_sentences_pass():
    tokenizer = FakeTokenizer()
    quote = words(12)
    calibration = cut(text_of(quote, words(2000, start=5000)), tokenizer, num_windows=8)
    evaluation = cut(text_of(quote, words(2000, start=9000)), tokenizer, num_windows=8)
    evaluation.check_disjoint(calibration)
    calibration.check_disjoint(evaluation)


def test_disjoint_texts_of_the_same_words_pass():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 50, 3000)) for _ in range(2)]
    calibration, evaluation = pair(*(text_of(t) for t in texts))
    evaluation.check_disjoint(calibration)


class LetterTokenizer(FakeTokenizer):
    """A token per character; all but letters are unknown to it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(c) % 26 + 1 if c.isalpha() else 0 for c in text]


def test_texts_that_share_indentation_and_unknown_characters_pass():
    """Half of the 32 tokens that a window begins with may be such to a small vocabulary."""
    code = [
        "\n".join(f"{' ' * 40}{'=' * 40} {word}" for word in words(900, start=start).split())
        for start in (0, 5000)
    ]
    tokenizer = LetterTokenizer()
    calibration, evaluation = (cut(text_of(each), tokenizer, num_windows=8) for each in code)
    evaluation.check_disjoint(calibration)
    other_lines = code[0].replace(" ", "").replace("\n", " ")
    with pytest.raises(TextError, match="shares 100%"):
        cut(text_of(other_lines), tokenizer, num_windows=8).check_disjoint(calibration)


@pytest.mark.parametrize("tokenizer", [FakeTokenizer(), ChatTokenizer()])
def test_chats_overlap_by_their_messages_and_not_by_system_prompts(tokenizer):
    system = "You are a helpful assistant. " + words(30, start=90_000)
    chats = [
        [chat_of(words(20, start=start + 20 * i), "yes", system=system) for i in range(100)]
        for start in (0, 5000)
    ]
    calibration, other = (cut(text_of(*each), tokenizer, num_windows=8) for each in chats)
    other.check_disjoint(calibration)
    said = text_of(*(" ".join(chat.contents()) for chat in chats[0][::-1]))
    with pytest.raises(TextError, match=r"shares \d\d% of its text"):
        cut(said, tokenizer, num_windows=8).check_disjoint(calibration)


def test_texts_too_short_for_a_sketch_are_compared_by_hash():
    tokenizer = FakeTokenizer()
    texts = [text_of(words(500)), text_of(words(500, start=500))]
    first, second = (cut(t, tokenizer, window_tokens=16) for t in texts)
    first.check_disjoint(second)
    with pytest.raises(TextError):
        first.check_disjoint(first)


@given(st.integers(1, 700), st.integers(1, 20), st.integers(0, 25), st.integers(0, 25))
def test_batches_hold_each_chosen_window_once_in_order(length, count, start, stop):
    tokens = np.arange(count * length, dtype=np.int32).reshape(count, length)
    windows = cut(text_of(words(300)))
    object.__setattr__(windows, "tokens", tokens)
    batches = windows.batches(start, stop)
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows == tokens[start:stop].tolist()
    assert all(batch.size <= max(2048, length) for batch in batches)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 512),
        ({"max_position_embeddings": 131072}, 512),
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": None}, 512),
        ({"text_config": {"max_position_embeddings": 128}}, 128),
        ({"n_positions": 64, "n_ctx": 1024}, 64),
        ({"max_position_embeddings": 2048, "n_positions": 100}, 100),
        ({"text_config": {}}, 512),
        ({"text_config": None}, 512),
    ],
)
def test_a_window_is_as_long_as_the_model_allows_at_most_512(config, expected):
    assert window_length(config) == expected


def test_a_begin_token_that_a_real_tokenizer_adds_is_at_the_front_of_every_window(tmp_path):
    folder = save_model(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer.save(str(folder / "tokenizer.json"))
    windows = cut(text_of(words(400)), open_tokenizer(folder))
    assert windows.tokens[:, 0].tolist() == [begin] * len(windows.tokens)
    assert begin not in windows.tokens[:, 1:]


# Windows for another process.


def restored(raw, **overrides):
    return Windows.from_json(raw, **{"window_tokens": 32, "num_tokens": 1 << 20} | overrides)


def test_windows_come_back_from_json_as_they_were():
    windows = cut(text_of(words(2000)))
    raw = json.loads(json.dumps(windows.to_json()))
    found = restored(raw, window_tokens=windows.tokens.shape[1])
    assert np.array_equal(found.tokens, windows.tokens)
    assert found.facts == windows.facts
    assert found.sketch.to_text() == windows.sketch.to_text()


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": "not base64"},
        {"tokens": ""},
        {"tokens": "AAAA"},
        {"sketch": 7},
        {"facts": {}},
        {"facts": None},
    ],
)
def test_damaged_json_of_windows_is_refused(change):
    windows = cut(text_of(words(2000)))
    with pytest.raises(InvalidModelError, match="cannot be read"):
        restored(windows.to_json() | change, window_tokens=windows.tokens.shape[1])


@pytest.mark.parametrize("raw", [None, [], 7, {}])
def test_json_that_is_no_object_of_windows_is_refused(raw):
    with pytest.raises(InvalidModelError, match="cannot be read"):
        restored(raw)


def test_windows_of_another_model_are_refused():
    windows = cut(text_of(words(2000)))
    length = windows.tokens.shape[1]
    with pytest.raises(InvalidModelError, match="another model"):
        restored(windows.to_json(), window_tokens=length, num_tokens=int(windows.tokens.max()))
    with pytest.raises(InvalidModelError, match="cannot be read"):
        restored(windows.to_json(), window_tokens=10**6)
