"""`python -m experiments.em`: see `command`."""

from experiments.command import flags
from experiments.em import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
