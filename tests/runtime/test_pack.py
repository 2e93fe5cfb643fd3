"""Text in, shards out."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from elasticmoe.errors import DataError, StorageError
from elasticmoe.runtime.dataset import Split, TokenStream, read_dataset
from elasticmoe.runtime.pack import pack, stdlib_sources
from elasticmoe.runtime.tokenizer import read_tokenizer


def tokens_of(directory: Path, split: Split = "train") -> bytes:
    return b"".join(
        batch.astype(np.uint8).tobytes() for batch in TokenStream(directory, split).batches()
    )


def write_words(directory: Path, count: int) -> None:
    directory.mkdir(exist_ok=True)
    for number in range(count):
        (directory / f"{number:03d}.txt").write_text(f"document {number} ")


def build_tokenizer(path: Path, extra: tuple[str, ...] = ("<eos>",), words: int = 300) -> Path:
    names = (*extra, "the", "cat", "sat", *(f"w{n}" for n in range(words)))
    tokenizer = Tokenizer(WordLevel({name: n for n, name in enumerate(names)}, unk_token="the"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))
    return path


def test_documents_follow_each_other_with_a_separator(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second \xff\xfe")
    (tmp_path / "a.txt").write_bytes("först".encode())
    (tmp_path / "c.txt").write_bytes(b"")

    summary = pack([tmp_path], tmp_path / "out", holdout=0.0)

    assert tokens_of(tmp_path / "out") == "först".encode() + b"\0second \xff\xfe\0"
    assert (summary.documents, summary.train_tokens, summary.heldout_tokens) == (2, 17, 0)


def test_the_same_inputs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_words(tmp_path / place, 100)

    first = pack([tmp_path / "here"], tmp_path / "one", holdout=0.1)
    second = pack([tmp_path / "there"], tmp_path / "two", holdout=0.1)

    assert first.digest == second.digest
    for name in ("train-00000.arrow", "heldout-00000.arrow", "dataset.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_every_document_is_on_one_side_and_stays_there(tmp_path: Path) -> None:
    write_words(tmp_path / "text", 200)
    pack([tmp_path / "text"], tmp_path / "small", holdout=0.1)
    write_words(tmp_path / "text", 400)

    summary = pack([tmp_path / "text"], tmp_path / "large", holdout=0.1)

    before = set(tokens_of(tmp_path / "small", "heldout").split(b"\0"))
    heldout = set(tokens_of(tmp_path / "large", "heldout").split(b"\0"))
    train = set(tokens_of(tmp_path / "large").split(b"\0"))
    assert before <= heldout
    assert heldout & train == {b""}
    assert len(heldout | train) == summary.documents + 1 == 401
    assert 0.05 < summary.heldout_tokens / summary.train_tokens < 0.2


def test_of_a_single_document_the_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"x" * 899 + b"y" * 100)

    pack([tmp_path / "book.txt"], tmp_path / "out", holdout=0.1)

    assert tokens_of(tmp_path / "out") == b"x" * 899 + b"y"
    assert tokens_of(tmp_path / "out", "heldout") == b"y" * 99 + b"\0"


def test_long_streams_are_cut_into_shards_and_old_shards_go(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(bytes(range(1, 251)) * 4)
    out = tmp_path / "out"
    pack([tmp_path / "long.txt"], out, holdout=0.0, shard_tokens=100)

    summary = pack([tmp_path / "long.txt"], out, holdout=0.0, shard_tokens=400)

    assert summary.shards == 3
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "train-00000.arrow",
        "train-00001.arrow",
        "train-00002.arrow",
    ]
    assert tokens_of(out) == bytes(range(1, 251)) * 4 + b"\0"


def test_jsonl_and_parquet_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two", "x": 1}\n')
    pq.write_table(pa.table({"body": ["three", "four"]}), tmp_path / "b.parquet")

    pack([tmp_path], tmp_path / "out", text_column="body", holdout=0.0)

    assert tokens_of(tmp_path / "out") == b"one\0two\0three\0four\0"


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "row 1: not JSON"),
        ("[1]", "row 1: not an object with a field 'text'"),
        ('{"body": "x"}', "row 1: not an object with a field 'text'"),
        ('{"text": 5}', "row 1: the text is of type int"),
        ('{"text": "\\ud800"}', "row 1: not valid text"),
    ],
)
def test_a_bad_row_is_one_error_with_file_and_row(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "good"}}\n{row}\n')

    with pytest.raises(DataError, match=message) as error:
        pack([path], tmp_path / "out")

    assert str(path) in str(error.value)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_parquet_file_without_the_column_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "x.parquet")

    with pytest.raises(DataError, match="no column 'text' among a, b"):
        pack([tmp_path / "x.parquet"], tmp_path / "out")


@pytest.mark.parametrize("name", ["absent.txt", "*.absent", "empty"])
def test_inputs_that_match_nothing_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match="no such file"):
        pack([tmp_path / name], tmp_path / "out")


def test_directories_give_text_files_only_and_patterns_what_they_match(tmp_path: Path) -> None:
    for name in ("a.py", "b.bin", ".hidden.py", "__pycache__/c.py", "deep/site-packages/d.py"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(name)

    pack([tmp_path / "src"], tmp_path / "one", holdout=0.0)
    pack([tmp_path / "src" / "**" / "*.bin"], tmp_path / "two", holdout=0.0)

    assert tokens_of(tmp_path / "one") == b"a.py\0"
    assert tokens_of(tmp_path / "two") == b"b.bin\0"


def test_a_tokenizer_file_comes_along_and_decides_the_width(tmp_path: Path) -> None:
    path = build_tokenizer(tmp_path / "words.json")
    (tmp_path / "a.txt").write_text("the cat w290")

    pack([tmp_path / "a.txt"], tmp_path / "out", tokenizer=path, holdout=0.0)

    dataset = read_dataset(tmp_path / "out")
    (batch,) = TokenStream(tmp_path / "out", "train").batches()
    assert (dataset.vocab_size, dataset.dtype, dataset.separator) == (304, "uint16", 0)
    assert batch.tolist() == [1, 2, 294, 0]
    assert read_tokenizer(tmp_path / "out").decode([1, 2]) == "the cat"


def test_bytes_decode_to_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    pack([tmp_path / "a.txt"], tmp_path / "out")

    assert read_tokenizer(tmp_path / "out").decode([*list("né".encode()), 255]) == "né\ufffd"


def test_a_tokenizer_needs_utf8_and_names_what_is_not(tmp_path: Path) -> None:
    path = build_tokenizer(tmp_path / "words.json")
    (tmp_path / "bad.txt").write_bytes(b"the \xff")

    with pytest.raises(DataError, match=r"bad\.txt, row 0: byte 4 is not UTF-8"):
        pack([tmp_path / "bad.txt"], tmp_path / "out", tokenizer=path)


def test_a_tokenizer_without_a_separator_says_which_would_do(tmp_path: Path) -> None:
    path = build_tokenizer(tmp_path / "words.json", extra=("[UNK]",))

    with pytest.raises(DataError, match="<eos>"):
        pack([tmp_path], tmp_path / "out", tokenizer=path)


def test_a_file_that_is_no_tokenizer_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")

    with pytest.raises(DataError, match=r"x\.json is not a tokenizers JSON file"):
        pack([tmp_path], tmp_path / "out", tokenizer=tmp_path / "x.json")


def test_an_output_that_cannot_be_a_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")

    with pytest.raises(StorageError):
        pack([tmp_path / "a.txt"], tmp_path / "a.txt" / "out")


def test_the_description_holds_no_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    pack([tmp_path / "a.txt"], tmp_path / "out")

    text = (tmp_path / "out" / "dataset.json").read_text()

    assert str(tmp_path) not in text
    assert json.loads(text)["tokenizer"] == "bytes"


def test_the_standard_library_packs(tmp_path: Path) -> None:
    summary = pack([stdlib_sources()], tmp_path / "out")

    assert summary.documents > 500
    assert summary.train_tokens > 8_000_000
    assert 0.003 < summary.heldout_tokens / summary.train_tokens < 0.1
