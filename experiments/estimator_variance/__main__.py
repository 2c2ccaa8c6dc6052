"""`python -m experiments.estimator_variance`: see `command`."""

from experiments.command import cli
from experiments.estimator_variance import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
