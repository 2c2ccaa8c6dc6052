r"""Trains a variational autoencoder, by Auto-Encoding Variational Bayes or a rival.

    python -m experiments.train
    python -m experiments.train --flagfile=experiments/flags/train/mnist.flags
    python -m experiments.train --algorithm=mcem --num_latents=2

Kingma & Welling 2013 (arXiv:1312.6114), whose rivals --algorithm names. Writes to
--workdir: the flags, versions and protocol, metrics.jsonl and TensorBoard events,
checkpoints, the test bound, pictures. The same command again continues from the newest
whole checkpoint, bit for bit.
"""

from experiments.choices.config import Config
from experiments.command import cli
from experiments.measures import whole_run
from vae_jax.training import parallel


def main(config: Config) -> int:
    """Trains, or continues, the run."""
    with cli.user_errors():
        parallel.initialize(
            config.coordinator_address,
            num_processes=config.num_processes,
            process_id=config.process_id,
        )
    whole_run.train(config)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
