"""Text to token ids and back: plain bytes, or a `tokenizers` JSON file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import tokenizers

from elasticmoe.errors import DataError
from elasticmoe.runtime.dataset import TokenArray, read_dataset

_SEPARATORS: Final = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek's, with full-width bars
    "</s>",
    "<eos>",
    "[SEP]",
)
"""Names that common tokenizers give the token between documents, the likeliest first."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    separator: int
    """The token written after every document."""

    def encode(self, texts: Sequence[bytes]) -> list[TokenArray]:
        """Token ids of each text; ValueError where a text is not UTF-8 but has to be."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids; what is not text becomes a replacement character."""
        ...


class ByteTokenizer:
    """Every byte is a token; documents are separated by byte 0."""

    vocab_size = 256
    separator = 0

    def encode(self, texts: Sequence[bytes]) -> list[TokenArray]:
        """See `Tokenizer.encode`; any bytes will do."""
        return [np.frombuffer(text, np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return bytes(ids).decode(errors="replace")


class FileTokenizer:
    """A tokenizer from a `tokenizers` JSON file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Raises:
            DataError: the file is no tokenizer, or has none of the usual separator tokens.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise DataError(f"{path} is not a tokenizers JSON file: {error}") from None
        ids = (self._tokenizer.token_to_id(name) for name in _SEPARATORS)
        found = next((number for number in ids if number is not None), None)
        if found is None:
            raise DataError(
                f"{path} has no token to separate documents with; add one of "
                f"{', '.join(_SEPARATORS)} to its added_tokens"
            )
        self.separator: int = found
        # ids may have gaps, so the highest one counts, not their number
        self.vocab_size: int = max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[bytes]) -> list[TokenArray]:
        """See `Tokenizer.encode`."""
        encoded = self._tokenizer.encode_batch(
            [text.decode() for text in texts], add_special_tokens=False
        )
        return [np.asarray(one.ids, np.uint32) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(ids)))


def open_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """`bytes`, or the path of a `tokenizers` JSON file.

    Raises:
        DataError: see `FileTokenizer`.
    """
    return ByteTokenizer() if os.fspath(name) == "bytes" else FileTokenizer(Path(name))


def read_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer a corpus was packed with.

    Raises:
        DataError: the corpus' description or its tokenizer file is missing or damaged.
    """
    name = read_dataset(directory).tokenizer
    return open_tokenizer(name if name == "bytes" else Path(directory) / name)
