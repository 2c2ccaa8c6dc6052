"""`python -m experiments.inference_gaps`: see `command`."""

from experiments.command import cli
from experiments.inference_gaps import command

if __name__ == "__main__":
    cli.run(command.Config, command.main)
