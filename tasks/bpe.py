"""Byte-pair encoding of the Python manual, learned from the part of it that is trained on.

Learning 1024 merges takes 0.1 s and encoding 0.2 s, so they are kept for the process and not on disk.

Source: Gage 1994; Sennrich, Haddow and Birch 2016, arXiv:1508.07909; bytes as in GPT-2, Radford et al. 2019. Learned by
the package `tokenizers`, which counts pairs exactly and settles ties by their symbols: the same text, the same merges.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks import data
from tasks.data import Split
from tasks.task import sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = 1024
VOCABULARY = 256 + MERGES


def learn(texts: list[str]) -> Tokenizer:
    """A tokenizer of all 256 bytes and 1024 merges; a merge goes over no edge between words, as GPT-2 splits them.

    Raises:
        ValueError: the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ValueError("tokens=bpe needs the package 'tokenizers'; pip install 'tokenizers>=0.20'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@cache
def pieces() -> tuple[list[Tensor], list[Tensor]]:
    """The manual as tokens, int64 [tokens] a piece: to train on, nine blocks each, and every tenth block, held out.

    The blocks are those of `data.manual_blocks`; a character that an edge of a piece cuts in two is replaced.
    """
    raw = data.manual_text().encode()
    whole = len(raw) // data.BLOCK * data.BLOCK
    period, kept = data.HELD_OUT_EVERY * data.BLOCK, (data.HELD_OUT_EVERY - 1) * data.BLOCK
    runs = [raw[start : min(start + kept, whole)] for start in range(0, whole, period)]
    held_out = [raw[start : start + data.BLOCK] for start in range(kept, whole, period)]
    texts, others = ([piece.decode(errors="replace") for piece in part] for part in (runs, held_out))
    tokenizer = learn(texts)
    encoded = [[torch.tensor(x.ids) for x in tokenizer.encode_batch(part)] for part in (texts, others)]
    return encoded[0], encoded[1]


@cache
def manual(length: int, *, stride: int, held_out: int) -> Split:
    """Windows of the manual's tokens, none across the edge of a piece, as `data.manual` has them of its symbols."""
    train, others = pieces()
    windows = torch.cat([piece.unfold(0, length, stride) for piece in train if len(piece) >= length])
    pool = torch.cat([piece.unfold(0, length, 1) for piece in others if len(piece) >= length])
    spread = torch.linspace(0, len(pool) - 1, held_out, dtype=torch.float64).long()
    return Split((windows,), (pool[spread],), sha256(*train, *others))
