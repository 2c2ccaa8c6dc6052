"""Pythae's VAE and trainer, with its own data loader, optimizer and evaluation."""

import logging
import tempfile
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  # of the extra `benchmark`
from pythae import data, models, trainers  # pyright: ignore[reportMissingImports]
from pythae.models import nn  # pyright: ignore[reportMissingImports]
from pythae.models.base import base_utils  # pyright: ignore[reportMissingImports]
from pythae.trainers import training_callbacks  # pyright: ignore[reportMissingImports]

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Contender, Problem, Weights
from experiments.benchmark.peers import torch_vae

CHUNK = 1000  # samples at a time in get_nll: faster than its default of 100


def contender(name: str, problem: Problem) -> Contender:
    """Its trainer's epochs, without their progress bar."""
    del name
    logging.disable(logging.INFO)
    raw = problem.train[: problem.num_steps * problem.flags.batch_size]
    rows = torch.from_numpy(raw.reshape(len(raw), -1)).float() / problem.divisor
    model = _model(problem.start)
    trainer = trainers.BaseTrainer(
        model,
        train_dataset=data.BaseDataset(rows, torch.zeros(len(rows))),
        training_config=trainers.BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(prefix="pythae_"),
            per_device_train_batch_size=problem.flags.batch_size,
            learning_rate=contenders.LEARNING_RATE,
            no_cuda=True,
        ),
        callbacks=[],
    )
    trainer.prepare_training()
    trainer.callback_handler = training_callbacks.CallbackHandler([], model)
    epochs = [0]

    def epoch() -> None:
        epochs[0] += 1
        trainer.train_step(epochs[0])

    return Contender(epoch, lambda: _weights(model))


def evaluator(reached: Weights, num_samples: int) -> contenders.LogP:
    """Log p(x) by `get_nll`."""
    model = _model(reached).eval()
    chunk = min(CHUNK, num_samples)

    @torch.inference_mode()
    def log_p(images: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))
        # It averages over images; one at a time costs it nothing.
        values = [model.get_nll(row[None], num_samples, chunk) for row in rows]
        return np.array(values, np.float32)

    return log_p


class _Encoder(nn.BaseEncoder):
    """A perceptron to the mean and the log variance."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Any) -> Any:
        """As Pythae's encoders answer."""
        mean, log_std = self.network(x).chunk(2, -1)
        return base_utils.ModelOutput(embedding=mean, log_covariance=2.0 * log_std)


class _Decoder(nn.BaseDecoder):
    """A perceptron to probabilities, which its cross-entropy takes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Any) -> Any:
        """As Pythae's decoders answer."""
        return base_utils.ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


def _model(weights: Weights) -> Any:
    return models.VAE(
        models.VAEConfig(
            input_dim=(len(weights.encoder[0].kernel),),
            latent_dim=len(weights.decoder[0].kernel),
            reconstruction_loss="bce",
        ),
        encoder=_Encoder(torch_vae.network(weights.encoder)),
        decoder=_Decoder(torch_vae.network(weights.decoder)),
    )


def _weights(model: Any) -> Weights:
    return Weights(
        torch_vae.layers(model.encoder.network),
        torch_vae.layers(model.decoder.network),
    )
