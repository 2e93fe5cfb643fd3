"""The order-2 yardstick against a count by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from elasticmoe.errors import DataError
from elasticmoe.runtime.order2 import order2_bits_per_byte
from elasticmoe.runtime.pack import pack

TEXT = b"the cat sat on the mat. the rat sat on the cat. " * 7
SAMPLES = np.frombuffer(b"the dog sat on it." + b" sat on the cat. t", np.uint8).reshape(2, -1)


def by_hand(text: bytes, seq_len: int, add: float) -> float:
    triples = Counter(zip(text, text[1:], text[2:], strict=False))
    bits = 0.0
    for row in SAMPLES.tolist():
        for place in range(1, seq_len + 1):
            first, last = row[max(0, place - 2) : place], row[place]
            fits = {t: n for t, n in triples.items() if list(t[2 - len(first) : 2]) == first}
            hits = sum(n for t, n in fits.items() if t[2] == last)
            bits -= np.log2((hits + add) / (sum(fits.values()) + 256 * add))
    return bits / (len(SAMPLES) * seq_len)


@pytest.mark.parametrize("seq_len", [17, 9])
def test_bits_per_byte_equal_a_count_by_hand(tmp_path: Path, seq_len: int) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    pack([tmp_path / "a.txt"], tmp_path / "out", holdout=0.0, shard_tokens=50)

    bits = order2_bits_per_byte(
        [tmp_path / "out"], SAMPLES.astype(np.int64), seq_len, chunk_tokens=37
    )

    assert bits == pytest.approx(by_hand(TEXT + b"\0", seq_len, 0.01), rel=1e-12)


def test_a_corpus_that_is_not_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT)
    pack([tmp_path / "a.txt"], tmp_path / "out", holdout=0.0)
    path = tmp_path / "out" / "dataset.json"
    path.write_text(path.read_text().replace('"vocab_size": 256', '"vocab_size": 200'))

    with pytest.raises(DataError, match="vocabulary of 200"):
        order2_bits_per_byte([tmp_path / "out"], SAMPLES.astype(np.int64), 9)
