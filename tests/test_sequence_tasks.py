"""What is particular to tasks on sequences: sizes, bfloat16, batches in pieces, byte pairs, token shards.

What they have in common with every task is in `test_tasks`.
"""

from __future__ import annotations

import copy
import math
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tasks
from discover import artefact, gradient
from tasks import Task, bpe, data, layers
from tasks.gpt import GPT, SIZES
from tasks.tokens import MAGIC, Tokens, find
from tests import twins
from tests.test_tasks import lanes, loss_and_gradient, one_thread  # noqa: F401

# ---- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [("100k", 1e5), ("360k", 3.6e5), ("1m", 1e6), ("10m", 1e7)])
def test_size_is_about_what_it_is_called(size: Any, expected: float) -> None:
    assert 0.9 < GPT(size).size / expected < 1.15


def test_roles_are_those_of_a_transformer() -> None:
    roles = {p.name: p.role for p in tasks.load("gpt").parameters}
    assert roles["embedding.weight"] == "embedding"
    assert roles["head.weight"] == "head"
    assert {roles[f"block0.{part}.weight"] for part in ("query", "key")} == {"query_key"}
    assert {roles[f"block1.{part}.weight"] for part in ("value", "mix", "up", "down")} == {"hidden"}
    assert {role for name, role in roles.items() if name.endswith("gain")} == {"norm"}


def test_start_predicts_little_more_than_nothing() -> None:
    for size in ("100k", "1m"):
        task = GPT(size)
        loss = task.loss(task.split(task.initial(0)[None]), task.gather(task.batches(0, 1)))
        assert loss.item() == pytest.approx(math.log(data.SYMBOLS), abs=0.3)


def test_long_contexts_attend_as_short_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = torch.randn(3, 2, 3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    written_out = layers.causal_attention(query, key, value, heads=2)
    monkeypatch.setattr(layers, "WRITTEN_OUT_TO", 15)
    torch.testing.assert_close(layers.causal_attention(query, key, value, heads=2), written_out)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    """The largest size, over GPT-2's vocabulary, with one batch of tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    size = SIZES["124m"]
    write(folder / "fineweb_train_000001.bin", range(size.batch_size * size.context + 1), header=True)
    write(folder / "fineweb_val_000000.bin", range(3 * size.context), header=True)
    return GPT("124m", data=folder)


def test_gpt2_has_the_shape_of_gpt2(gpt2: GPT) -> None:
    assert gpt2.size == 123_587_328  # GPT-2 small has 124.4M, 0.8M of them positions
    assert (gpt2.batch_size, gpt2.train[0].shape, gpt2.held_out[0].shape) == (512, (512,), (2, 1025))
    assert gpt2.size_class == "large"


def test_gpt2_computes_on_shapes_alone(gpt2: GPT) -> None:
    moved = gpt2.to("meta")
    flat = torch.empty(1, gpt2.size, device="meta", requires_grad=True)
    window = torch.empty(1, 2, 1025, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        loss, grad = loss_and_gradient(moved, flat, window)
    assert (loss.shape, grad.shape) == ((1,), (1, gpt2.size))
    assert 0.9 < counter.get_total_flops() / (2 / gpt2.batch_size * gpt2.flops) < 1.1


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("gpt(qk_norm=false)", lambda: twins.GPT(97, 64, 2, 2, qk_norm=False)),
        ("gpt(tokens=bpe)", lambda: twins.GPT(1280, 64, 2, 2)),
        ("tied", lambda: twins.GPT(97, 64, 2, 2, tied=True)),
    ],
)
def test_variant_is_that_of_the_same_network_in_torch_nn(
    monkeypatch: pytest.MonkeyPatch, name: str, twin: Callable[[], twins.GPT]
) -> None:
    if name == "tied":
        monkeypatch.setitem(SIZES, "100k", replace(SIZES["100k"], tied=True))
        task: Task = GPT("100k")
    else:
        task = tasks.load(name)
    tasks.check(task, where=name)
    flat, batch = lanes(task, 1)
    loss, gradient = loss_and_gradient(task, flat, *batch)
    model = twin().double()
    nn.utils.vector_to_parameters(flat[0].detach(), model.parameters())
    expected = twins.predicts(model, (batch[0][0],))
    torch.testing.assert_close(loss[0], expected, rtol=1e-9, atol=1e-9)
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(model.parameters()))])
    torch.testing.assert_close(gradient[0], theirs, rtol=1e-7, atol=1e-9)


# ---- bfloat16 and large batches ---------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Notes the dtypes that matrix products and attention were given."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("bmm", "mm.", "scaled_dot_product")):
            self.dtypes |= {x.dtype for x in args[:3] if isinstance(x, Tensor)}  # not what attention keeps
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("written_out_to", [0, 256])
def test_bfloat16_is_for_products_alone(monkeypatch: pytest.MonkeyPatch, written_out_to: int) -> None:
    monkeypatch.setattr(layers, "WRITTEN_OUT_TO", written_out_to)
    full, half = tasks.load("gpt"), tasks.load("gpt(precision=bfloat16)")
    flat, batch = lanes(full, 2)
    single = flat.detach().float().requires_grad_()
    loss, gradient = loss_and_gradient(full, single, *batch)
    with Products() as products:
        rough, rough_gradient = loss_and_gradient(half, single, *batch)
    assert products.dtypes == {torch.bfloat16}
    assert (rough.dtype, rough_gradient.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(rough, loss, rtol=1e-2, atol=0)
    assert not torch.equal(rough, loss)
    assert nn.functional.cosine_similarity(gradient, rough_gradient, dim=1).min() > 0.99
    torch.testing.assert_close(half.loss(half.split(flat), batch), full.loss(full.split(flat), batch), rtol=0, atol=0)


def test_autocast_is_traced_with_the_loss() -> None:
    task = tasks.load("gpt(precision=bfloat16)")
    flat = torch.stack([task.initial(seed) for seed in range(2)])
    batch = task.gather(task.batches(0, 2))

    def step(flat: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return loss_and_gradient(task, flat.detach().requires_grad_(), *batch)

    traced = make_fx(step)(flat, *batch)
    assert "torch.bfloat16" in traced.code
    for ours, plain in zip(traced(flat, *batch), step(flat, *batch), strict=True):
        torch.testing.assert_close(ours, plain)


def cut(task: Task, microbatch: int | None) -> Task:
    changed = copy.copy(task)
    changed.microbatch = microbatch
    return changed


@pytest.mark.parametrize("microbatch", [1, 5, 8, 100])
@pytest.mark.parametrize("shared", [True, False])
def test_batch_in_pieces_has_the_same_gradient(microbatch: int, shared: bool) -> None:
    task = tasks.load("gru_lm(batch_size=8)")
    flat, batch = lanes(task, 3)
    flat, batch = flat.detach(), tuple(x[:1] for x in batch) if shared else batch
    whole = gradient.build(task, compile=False, dtype=torch.float64, tile=2)
    pieces = gradient.build(cut(task, microbatch), compile=False, dtype=torch.float64, tile=2)
    for ours, expected in zip(pieces(flat, batch, shared=shared), whole(flat, batch, shared=shared), strict=True):
        torch.testing.assert_close(ours, expected)
    with pytest.raises(ValueError, match=r"gru_lm: batch\[0\] is int64 \[3, 7, 25\].*, expected int64 \[3, 8, 25\]"):
        pieces(flat, tuple(x.expand(3, -1, -1)[:, :7] for x in batch))


def test_validation_in_pieces_is_the_same() -> None:
    task = tasks.load("gru_lm")
    parameters = task.split(torch.stack([task.initial(seed) for seed in range(2)]))
    torch.testing.assert_close(cut(task, 7).validation_loss(parameters), task.validation_loss(parameters))


@pytest.mark.slow
@pytest.mark.skipif(not artefact.have_compiler(), reason="needs a C++ compiler")
def test_compiled_pieces_in_bfloat16_follow_eager_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "WRITTEN_OUT_TO", 0)  # as with a long context
    monkeypatch.setitem(SIZES, "100k", replace(SIZES["100k"], layers=1, width=16, context=16, microbatch=4))
    task = GPT("100k", precision="bfloat16")
    flat, batch = lanes(task, 2)
    flat = flat.detach().float()
    compiled = gradient.build(task, compile=True, tile=1, cache_dir=tmp_path)
    assert (compiled.compiled, compiled.note) == (True, "")
    eager = gradient.build(task, compile=False, tile=1)
    for ours, expected in zip(compiled(flat, batch), eager(flat, batch), strict=True):
        assert (ours - expected).abs().max() < 0.05 * expected.abs().max()


# ---- byte pairs -------------------------------------------------------------------------------------------------


def test_byte_pairs_are_learned_alike_each_time_and_undone_without_loss() -> None:
    text = data.manual_text()[:50_000]
    first, second = bpe.learn([text]), bpe.learn([text])
    assert first.to_str() == second.to_str()
    assert first.get_vocab_size() == bpe.VOCABULARY
    encoded = first.encode(text).ids
    assert first.decode(encoded) == text
    assert len(encoded) < len(text) / 2.5


def test_byte_pairs_keep_to_the_blocks_of_the_manual() -> None:
    train, held_out = bpe.pieces()
    text = data.manual_text().encode()
    blocks = [text[i : i + 4096] for i in range(0, len(text) - 4095, 4096)]
    runs = [b"".join(blocks[i : i + 9]).decode(errors="replace") for i in range(0, len(blocks), 10)]
    tokenizer = bpe.learn(runs)
    assert [tokenizer.decode(piece.tolist()) for piece in train] == runs
    kept = [block.decode(errors="replace") for block in blocks[9::10]]
    assert [tokenizer.decode(piece.tolist()) for piece in held_out] == kept


def test_held_out_byte_pairs_are_hardly_trained_on() -> None:
    task = tasks.load("gpt(tokens=bpe)")
    trained, held_out = ({row.numpy().tobytes() for row in part} for part in (task.train[0], task.held_out[0]))
    assert len(trained & held_out) < 0.03 * len(held_out)  # not 0: the manual repeats itself


def test_missing_tokenizers_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="tokens=bpe needs the package 'tokenizers'; pip install"):
        bpe.learn(["text"])


# ---- token shards -----------------------------------------------------------------------------------------------


def write(path: Path, values: Sequence[int], *, header: bool, magic: int = MAGIC, version: int = 1) -> Path:
    """A shard in one of the two formats; values are taken modulo 2^16."""
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, len(values)
    body = (np.asarray(values) % 2**16).astype("<u2").tobytes()
    path.write_bytes(head.tobytes() * header + body)
    return path


@pytest.fixture(params=["raw", "header"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Training tokens 0 to 999 in one shard or in three, and held out 1000 to 1299."""
    if request.param == "raw":
        write(tmp_path / "train.bin", range(1000), header=False)
        write(tmp_path / "val.bin", range(1000, 1300), header=False)
    else:
        for i, (start, stop) in enumerate([(0, 333), (333, 340), (340, 1000)]):
            write(tmp_path / f"fineweb_train_{i + 1:06}.bin", range(start, stop), header=True)
        write(tmp_path / "fineweb_val_000000.bin", range(1000, 1300), header=True)
    return tmp_path


def test_shards_are_one_stream(folder: Path) -> None:
    train, held_out = (Tokens(paths) for paths in find(folder))
    assert (len(train), len(held_out)) == (1000, 300)
    starts = torch.tensor([[0, 300, 330], [333, 335, 980]])
    expected = starts[..., None] + torch.arange(20)
    assert torch.equal(train.windows(starts, 20), expected)
    assert held_out.windows(torch.tensor([0]), 3).tolist() == [[1000, 1001, 1002]]


def test_task_on_shards_keeps_the_contract(folder: Path) -> None:
    task = tasks.load(f"gpt(data='{folder}', vocabulary=1300, batch_size=3)")
    assert isinstance(task, GPT)
    tasks.check(task, where=task.name)
    assert (task.train[0].shape, task.held_out[0].shape) == ((15,), (4, 65))
    assert torch.equal(task.held_out[0][1], torch.arange(1064, 1129))
    index = task.batches(7, 20)
    assert torch.equal(task.batches(7, 11), index[:11])
    for epoch in index.view(4, -1):
        assert len(epoch.unique()) == 15
    (window,) = task.gather(index.view(4, 5, 3))
    assert torch.equal(window, (index.view(4, 5, 3, 1) * 64 + torch.arange(65)))
    parameters = task.split(torch.stack([task.initial(0), task.initial(1)]))
    assert task.validation_loss(parameters).tolist() == pytest.approx([math.log(1300)] * 2, abs=0.4)


def test_batch_is_no_larger_than_the_data(folder: Path) -> None:
    task = GPT("1m", data=folder, vocabulary=1300)
    assert task.batch_size == len(task.train[0]) == 7
    assert task.batches(0, 2).shape == (2, 7)


@pytest.mark.parametrize("name", ["tinystories_train_00[12].bin", "tinystories_train_001.bin", "*.bin"])
def test_shards_are_found_by_glob(tmp_path: Path, name: str) -> None:
    for i in (1, 2, 3):
        write(tmp_path / f"tinystories_train_00{i}.bin", range(i), header=True)
    held_out = write(tmp_path / "tinystories_val.bin", range(9), header=True)
    assert find(tmp_path / name) == (sorted(x for x in tmp_path.glob(name) if "train" in x.name), [held_out])


def test_hash_tells_shards_apart(tmp_path: Path) -> None:
    values = list(range(5000))
    first = Tokens([write(tmp_path / "train.bin", values, header=False)]).sha256()
    assert Tokens([write(tmp_path / "a_train.bin", values, header=True)]).sha256() != first
    values[3456] += 1
    assert Tokens([write(tmp_path / "train.bin", values, header=False)]).sha256() != first
    assert Tokens([write(tmp_path / "train.bin", range(5000), header=False)]).sha256() == first


def test_nothing_is_read_but_what_is_asked_for(tmp_path: Path) -> None:
    count = 200_000_000
    with write(tmp_path / "train.bin", [], header=False).open("r+b") as file:
        file.truncate(2 * count)  # a hole: takes no room on the disk
        file.seek(-6, 2)
        file.write(np.array([1, 2, 3], dtype="<u2").tobytes())
    tracemalloc.start()
    try:
        stream = Tokens([tmp_path / "train.bin"])
        stream.sha256()
        assert stream.windows(torch.tensor([count - 4]), 4).tolist() == [[0, 1, 2, 3]]
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def headed(**options: int) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "x_train.bin", range(100), header=True, **options)


def shortened(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-1])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"no token shards there; expected a folder with train.bin and val.bin, or "),
        (lambda folder: write(folder / "other.bin", [1], header=True), r"no token shards to train on, among 2 .bin"),
        (headed(magic=7), r"x_train.bin: not a token shard: magic 7, expected 20240520"),
        (headed(version=7), r"x_train.bin: token shard of version 7, expected 1"),
        (
            lambda f: shortened(headed()(f)),
            r"x_train.bin: 1223 bytes, expected 1224, as its header says 100 tokens; is",
        ),
        (
            lambda f: shortened(write(f / "train.bin", [1, 2], header=False)),
            r"train.bin: 3 bytes are no sequence of 16",
        ),
        (lambda f: write(f / "train.bin", [], header=False), r"train.bin: 0 bytes are no sequence of 16-bit tokens"),
        (lambda f: write(f / "x_train.bin", [], header=True), r"x_train.bin: holds no tokens"),
        (lambda f: write(f / "x_train.bin", [], header=False), r"x_train.bin: not a token shard: 0 bytes, expected"),
        (
            lambda f: write(f / "train.bin", range(64), header=False),
            r"train.bin: 64 tokens, expected at least a window",
        ),
    ],
)
def test_wrong_shards_say_what_was_expected(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    if make(tmp_path) is not None:
        write(tmp_path / "val.bin", range(100), header=False)
    with pytest.raises(ValueError, match=message):
        tasks.load(f"gpt(data='{tmp_path}')")


def test_token_outside_the_vocabulary_is_said_where_it_is(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"val.*\.bin: token 1200 at position 200 is outside the vocabulary of 1200"):
        GPT(data=folder, vocabulary=1200)
    stream = Tokens(find(folder)[0], vocabulary=500)
    assert stream.windows(torch.tensor([450]), 50).max() == 499
    with pytest.raises(
        ValueError, match=r"train.*\.bin: token 500 at position (500|160) is outside the vocabulary of 5"
    ):
        stream.windows(torch.tensor([0, 470]), 50)


def test_shards_without_held_out_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.bin", range(100), header=False)
    with pytest.raises(
        ValueError, match=r"no token shards to hold out, among 1 \.bin files; expected train.bin and val"
    ):
        find(tmp_path / "train.bin")


def test_impossible_options_are_said(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens=bpe is for the manual, and data=.* brings tokens of its own"):
        GPT(tokens="bpe", data=folder)
    with pytest.raises(ValueError, match="vocabulary 0: expected 1 to 65536"):
        GPT(data=folder, vocabulary=0)
