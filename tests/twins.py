"""The tasks' networks as one would write them with torch.nn: what the tests hold the lanes' losses against, and what
`benchmarks/lanes.py` trains one at a time. Parameters are made in the tasks' order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks import images

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


class GPT(nn.Module):
    """`gpt`: rotary positions as products of complex numbers, attention by torch."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
            super().__init__()
            self.heads, self.qk_norm = heads, qk_norm
            self.norm1 = nn.RMSNorm(width, eps=1e-5)
            self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
            self.norm2 = nn.RMSNorm(width, eps=1e-5)
            self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def rotated(self, x: Tensor) -> Tensor:
            """x [B, heads, T, features]: feature i and the one half a head further on, as one complex number."""
            if self.qk_norm:
                x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            half = x.shape[-1] // 2
            speed = torch.tensor([10_000.0 ** -(i / half) for i in range(half)], dtype=x.dtype)
            angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * speed
            turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
            return torch.cat([turned.real, turned.imag], -1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(x)
            query, key, value = (
                part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            y = functional.scaled_dot_product_attention(self.rotated(query), self.rotated(key), value, is_causal=True)
            x = x + self.mix(y.transpose(1, 2).flatten(2))
            return x + self.down(self.up(self.norm2(x)).relu() ** 2)

    def __init__(
        self, symbols: int, width: int, heads: int, layers: int, *, qk_norm: bool = True, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.blocks = nn.Sequential(*(self.Block(width, heads, qk_norm) for _ in range(layers)))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, symbols, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.embedding(symbols)
        return self.head(self.norm(self.blocks(functional.rms_norm(x, x.shape[-1:], eps=1e-5))))


class GRU(nn.Module):
    """`gru_lm` as one would write it with torch.nn."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru, self.head = nn.Embedding(97, 32), nn.GRU(32, 88, batch_first=True), nn.Linear(88, 97)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(symbols))[0])


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


def predicts(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Every position of a window predicts the symbol that follows it."""
    return functional.cross_entropy(model(batch[0][:, :-1]).transpose(1, 2), batch[0][:, 1:])


def transformer() -> Pair:
    return Transformer(), predicts


def gpt() -> Pair:
    return GPT(97, width=64, heads=2, layers=2), predicts


def gru() -> Pair:
    return GRU(), predicts


def wine() -> Pair:
    return nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3)), classifies


def diabetes() -> Pair:
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)), lambda model, batch: functional.mse_loss(
        model(_data(model, batch[0])).flatten(), _data(model, batch[1])
    )


def _approximates(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return functional.mse_loss(model(_data(model, batch[0])), _data(model, batch[1]))


def diffusion() -> Pair:
    first, second = nn.Linear(72, 128), nn.Linear(128, 128)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(128, 64)), _approximates


class FourierFeatures(nn.Module):
    """Sines and cosines of fixed random frequencies, drawn as `photo_coordinates` says."""

    def forward(self, place: Tensor) -> Tensor:
        frequencies = 2 * torch.pi * 2.0 * torch.randn(2, 48, generator=torch.Generator().manual_seed(2020))
        phase = place @ frequencies.to(place.dtype)
        return torch.cat([phase.sin(), phase.cos()], -1)


def photograph() -> Pair:
    layers = nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    return nn.Sequential(FourierFeatures(), *layers), _approximates


def burgers() -> Pair:
    """Derivatives by reverse mode, twice, as most code for physics-informed networks has them."""
    layers = [layer for i in (2, 20, 20) for layer in (nn.Linear(i, 20), nn.Tanh())]

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        inside, edge, value = (_data(model, x) for x in batch)
        inside = inside.clone().requires_grad_()
        u = model(inside).squeeze(1)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 1].sum(), inside, create_graph=True)
        residual = slope[:, 0] + u * slope[:, 1] - 0.02 * bend[:, 1]
        return residual.square().mean() + 10 * functional.mse_loss(model(edge).squeeze(1), value)

    return nn.Sequential(*layers, nn.Linear(20, 1)), loss


class ViT(nn.Module):
    """`mnist_vit` as one would write it with torch.nn; parameters are made in the task's order."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(48)
            self.query, self.key, self.value, self.mix = (nn.Linear(48, 48) for _ in range(4))
            self.norm2 = nn.LayerNorm(48)
            self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm1(x)
            query, key, value = (
                part(y).unflatten(-1, (3, 16)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            y = functional.scaled_dot_product_attention(query, key, value)
            x = x + self.mix(y.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Linear(49, 48), nn.Embedding(16, 48)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, image: Tensor) -> Tensor:
        patches = functional.unfold(image, 7, stride=7).mT
        x = self.blocks(self.patch(patches) + self.position.weight)
        return self.head(self.norm(x).mean(1))


class ResNet(nn.Module):
    """`mnist_resnet` as one would write it with torch.nn; parameters are made in the task's order."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.GroupNorm(outputs // 8, outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.GroupNorm(outputs // 8, outputs)
            same = inputs == outputs
            self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
            return (self.short(x) + y).relu()

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.GroupNorm(1, 8)
        self.blocks = nn.Sequential(self.Block(8, 8, 1), self.Block(8, 16, 2), self.Block(16, 32, 2))
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.stem(image)).relu()).mean((2, 3)))


def _classifies_digits(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    source = images.load(None)
    pixels = (_data(model, batch[0]) - _data(model, source.mean)) / _data(model, source.deviation)
    return classifies(model, (pixels, batch[1]))


def vit() -> Pair:
    return ViT(), _classifies_digits


def resnet() -> Pair:
    return ResNet(), _classifies_digits


TWINS: dict[str, Twin] = {
    "breast_cancer": breast_cancer,
    "digits_mlp": mlp,
    "digits_autoencoder": autoencoder,
    "bytes_mlp": bytes_mlp,
    "digits_cnn": cnn,
    "bytes_transformer": transformer,
    "wine_classification": wine,
    "diabetes_regression": diabetes,
    "digits_spikes": mlp,
    "burgers_pinn": burgers,
    "digits_diffusion": diffusion,
    "photo_coordinates": photograph,
    "mnist_vit": vit,
    "mnist_resnet": resnet,
    "gru_lm": gru,
    "gpt": gpt,
}
