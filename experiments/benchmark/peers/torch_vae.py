"""PyTorch's fastest usual form: preloaded data, fused Adam, softplus cross-entropy.

Compiled, or in bfloat16 by autocast, if the name says so.
"""

import math
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the extra `benchmark`
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Contender, Layer, Problem, Weights
from experiments.benchmark.peers import torch_maps


def contender(name: str, problem: Problem) -> Contender:
    """Passes over the rows in a random order."""
    torch.manual_seed(0)
    if problem.flags.network == "mlp":
        modules = [network(weights) for weights in problem.start]
    else:
        modules = torch_maps.networks(problem)
    encoder, decoder = modules
    if name.endswith("_bfloat16"):
        encoder, decoder = map(_in_bfloat16, modules)
    rows = problem.train.reshape(len(problem.train), -1)
    data = torch.from_numpy(rows).float().div_(problem.divisor)
    loss = _elbo_loss if problem.flags.estimator == "sgvb_b" else _iwae_loss

    def of_batch(x: torch.Tensor) -> torch.Tensor:
        if problem.dynamic:
            x = (torch.rand_like(x) < x).float()
        return loss(encoder, decoder, x, problem.flags.num_samples)

    if name.startswith("torch_compile"):
        of_batch = torch.compile(of_batch)
    optimizer = torch.optim.Adam(
        [*modules[0].parameters(), *modules[1].parameters()],
        lr=contenders.LEARNING_RATE,
        fused=True,
    )
    size = problem.flags.batch_size

    def epoch() -> None:
        order = torch.randperm(len(data))
        for i in range(problem.num_steps):
            optimizer.zero_grad(set_to_none=True)
            of_batch(data[order[i * size : (i + 1) * size]]).backward()
            optimizer.step()

    weights = layers if problem.flags.network == "mlp" else torch_maps.layers
    return Contender(epoch, lambda: Weights(*map(weights, modules)))


def evaluator(reached: Weights, num_samples: int) -> contenders.LogP:
    """Log p(x), all samples of an image at once.

    One image with its 5,000 samples was the fastest chunk of those tried.
    """
    encoder, decoder = network(reached.encoder), network(reached.decoder)

    @torch.inference_mode()
    def log_p(images: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
        values = []
        for x in rows:
            mean, log_std = encoder(x).chunk(2)
            eps = torch.randn(num_samples, len(mean))
            z = mean + log_std.exp() * eps
            logits = decoder(z)
            log_p_x = logits @ x - functional.softplus(logits).sum(-1)
            log_w = log_p_x + (0.5 * (eps**2 - z**2) + log_std).sum(-1)
            values.append(torch.logsumexp(log_w, 0) - math.log(num_samples))
        return torch.stack(values).numpy()

    return log_p


def _in_bfloat16(module: Any) -> Any:
    """Products in bfloat16, the loss of what they give in float32."""

    def apply(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x).float()

    return apply


def network(weights: list[Layer]) -> Any:
    """A perceptron with tanh between its layers, at these weights."""
    modules: list[Any] = []
    for layer in weights:
        linear = torch.nn.Linear(*layer.kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(layer.kernel.T.copy()))
            linear.bias.copy_(torch.from_numpy(np.array(layer.bias)))
        modules += [linear, torch.nn.Tanh()]
    return torch.nn.Sequential(*modules[:-1])


def layers(network: Any) -> list[Layer]:
    """The weights of a perceptron."""
    return [
        Layer(linear.weight.detach().numpy().T.copy(), linear.bias.detach().numpy())
        for linear in network[::2]
    ]


def _elbo_loss(
    encoder: Any, decoder: Any, x: torch.Tensor, num_samples: int
) -> torch.Tensor:
    """Minus the ELBO with its KL in closed form, mean over the batch."""
    mean, log_std = encoder(x).chunk(2, -1)
    eps = torch.randn(num_samples, *mean.shape)
    logits = decoder(mean + log_std.exp() * eps)
    cross_entropy = (functional.softplus(logits) - x * logits).sum() / num_samples
    kl = 0.5 * (mean**2 + torch.expm1(2.0 * log_std) - 2.0 * log_std).sum()
    return (cross_entropy + kl) / len(x)


def _iwae_loss(
    encoder: Any, decoder: Any, x: torch.Tensor, num_samples: int
) -> torch.Tensor:
    """Minus the bound of num_samples importance samples, mean over the batch."""
    mean, log_std = encoder(x).chunk(2, -1)
    eps = torch.randn(num_samples, *mean.shape)
    z = mean + log_std.exp() * eps
    logits = decoder(z)
    log_p_x = (x * logits - functional.softplus(logits)).sum(-1)
    log_w = log_p_x + (0.5 * (eps**2 - z**2) + log_std).sum(-1)
    return math.log(num_samples) - torch.logsumexp(log_w, 0).mean()
