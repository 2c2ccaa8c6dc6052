"""Whether there is anything to draw."""

from collections.abc import Mapping


def check_some(**mappings: Mapping) -> None:
    """Refuses to draw nothing: empty panels, curves, bars or models.

    Raises:
        ValueError: naming the argument that is empty.
    """
    for name, mapping in mappings.items():
        if not mapping:
            raise ValueError(f"{name} must hold at least one")
