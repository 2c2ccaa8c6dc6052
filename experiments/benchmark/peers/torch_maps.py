"""The convolutional networks of the benchmarks in PyTorch, maps channels last."""

from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the extra `benchmark`
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Layer, Problem


class Maps(torch.nn.Module):
    """What encoder and decoder share: layers in order, and blocks of them."""

    def __init__(self, problem: Problem, weights: list[Layer]) -> None:
        """At these weights; 1x1 kernels on maps have two axes."""
        super().__init__()
        self.flags, self.x_shape = problem.flags, problem.train.shape[1:]
        self.steps = contenders.resolutions(self.flags, self.x_shape)
        of_vectors = -1 if isinstance(self, Encoder) else 0
        ends = [layer is weights[of_vectors] for layer in weights]
        modules = map(_affine, weights, ends)
        self.layers = torch.nn.ModuleList(modules).to(memory_format=torch.channels_last)

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """Of the flags."""
        if self.flags.activation == "tanh":
            return torch.tanh(x)
        return functional.gelu(x, approximate="tanh")

    def blocks(self, x: torch.Tensor, layers: Any) -> torch.Tensor:
        """Plain convolutions or pre-activation bottlenecks."""
        for _ in range(self.flags.num_blocks):
            if self.flags.network == "conv":
                x = next(layers)(self.activation(x))
                continue
            y = x
            for _ in range(4):
                y = next(layers)(self.activation(y))
            x = x + y
        return x


class Encoder(Maps):
    """Images [B, *X] to (mean, log std)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Halves the sides, blocks, and so on to an affine layer."""
        layers = iter(self.layers)
        x = x.reshape(len(x), *self.x_shape[:2], -1)
        for rows, columns, _ in self.steps:
            missing = 2 * rows - x.shape[1], 2 * columns - x.shape[2]
            x = functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
            x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
            x = x.permute(0, 1, 3, 2, 4, 5).flatten(3)
            x = self.blocks(next(layers)(_first(x)), layers)
            x = _last(x)
        return next(layers)(self.activation(x).flatten(1))


class Decoder(Maps):
    """Latents [..., D] to logits [..., entries]."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """An affine layer, blocks, and so on in twice the sides."""
        layers = iter(self.layers)
        x = next(layers)(z.flatten(0, -2)).unflatten(1, self.steps[-1])
        larger = [step[:2] for step in self.steps[-2::-1]] + [self.x_shape[:2]]
        for rows, columns in larger:
            x = self.blocks(_first(x), layers)
            x = _last(next(layers)(self.activation(x))).unflatten(3, (2, 2, -1))
            x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
            x = x[:, :rows, :columns]
        return x.reshape(*z.shape[:-1], -1)


def networks(problem: Problem) -> tuple[Encoder, Decoder]:
    """Both, at the weights that all contenders start from."""
    encoder, decoder = problem.start
    return Encoder(problem, encoder), Decoder(problem, decoder)


def layers(network: Maps) -> list[Layer]:
    """The weights of one."""

    def layer(module: Any) -> Layer:
        kernel, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)
            return Layer(kernel[0, 0] if kernel.shape[0] == 1 else kernel, bias)
        return Layer(kernel.T.copy(), bias)

    return [layer(module) for module in network.layers]


def _affine(layer: Layer, of_vectors: bool) -> Any:
    """A linear layer of vectors, or a convolution of maps, at these weights."""
    *taps, i, o = layer.kernel.shape
    if of_vectors:
        module, weight = torch.nn.Linear(i, o), layer.kernel.T
    else:
        side = taps[0] if taps else 1
        module = torch.nn.Conv2d(i, o, side, padding=side // 2)
        weight = layer.kernel.reshape(side, side, i, o).transpose(3, 2, 0, 1)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.array(weight)))
        module.bias.copy_(torch.from_numpy(np.array(layer.bias)))
    return module


def _first(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] as [B, C, H, W] of the same memory."""
    return x.permute(0, 3, 1, 2)


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)
