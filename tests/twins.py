"""The tasks' networks as one would write them with torch.nn: what the tests hold the lanes' losses against, and what
`benchmarks/lanes.py` trains one at a time. Parameters are made in the tasks' order."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[nn.Module, Callable[[nn.Module, tuple[Tensor, ...]], Tensor]]
"""A network and its loss on a batch."""

Twin = Callable[[], Pair]


class Transformer(nn.Module):
    """`bytes_transformer` as one would write it with torch.nn; parameters are made in the task's order."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.RMSNorm(32, eps=1e-5)
            self.query, self.key, self.value, self.mix = (nn.Linear(32, 32, bias=False) for _ in range(4))
            self.norm2 = nn.RMSNorm(32, eps=1e-5)
            self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(x)
            query, key, value = (
                part(y).unflatten(-1, (2, 16)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.mix(y.transpose(1, 2).flatten(2))
            return x + self.down(self.up(self.norm2(x)).relu() ** 2)

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(97, 32), nn.Embedding(32, 32)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.norm, self.head = nn.RMSNorm(32, eps=1e-5), nn.Linear(32, 97, bias=False)

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embedding(symbols) + self.position.weight
        return self.head(self.norm(self.blocks(x)))


def _data(model: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(model.parameters()).dtype)


def classifies(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.cross_entropy(model(_data(model, batch[0])), batch[1])


def breast_cancer() -> Pair:
    return nn.Linear(30, 1), lambda model, batch: functional.binary_cross_entropy_with_logits(
        model(_data(model, batch[0])).flatten(), _data(model, batch[1])
    )


def mlp() -> Pair:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), classifies


def cnn() -> Pair:
    wide, deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, stride=2)
    image = nn.Unflatten(1, (1, 8, 8))
    return nn.Sequential(image, wide, nn.ReLU(), deep, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)), classifies


def autoencoder() -> Pair:
    encoder = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8))
    decoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 64))
    return nn.Sequential(encoder, decoder), lambda model, batch: functional.mse_loss(
        model(_data(model, batch[0])), _data(model, batch[0])
    )


def bytes_mlp() -> Pair:
    embedding, hidden, head = nn.Embedding(97, 8), nn.Linear(64, 28), nn.Linear(28, 97)
    model = nn.Sequential(embedding, nn.Flatten(), hidden, nn.Tanh(), head)
    return model, lambda model, batch: functional.cross_entropy(model(batch[0][:, :-1]), batch[0][:, -1])


def transformer() -> Pair:
    return Transformer(), lambda model, batch: functional.cross_entropy(
        model(batch[0][:, :-1]).transpose(1, 2), batch[0][:, 1:]
    )


TWINS: dict[str, Twin] = {
    "breast_cancer": breast_cancer,
    "digits_mlp": mlp,
    "digits_autoencoder": autoencoder,
    "bytes_mlp": bytes_mlp,
    "digits_cnn": cnn,
    "bytes_transformer": transformer,
}
