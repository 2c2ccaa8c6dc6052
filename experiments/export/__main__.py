"""`python -m experiments.export`: see `command`."""

from experiments.command import flags
from experiments.export import command

if __name__ == "__main__":
    flags.run(command.Config, command.main)
