"""`python -m experiments.estimator_variance`: see `command`."""

from experiments.command import flags
from experiments.estimator_variance import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
