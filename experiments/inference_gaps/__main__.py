"""`python -m experiments.inference_gaps`: see `command`."""

from experiments.command import flags
from experiments.inference_gaps import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
