"""What the same rows cost, written in several ways."""

from collections.abc import Collection, Mapping

from matplotlib.figure import Figure

from vae_jax.plots import scales


def dots(
    sizes: Mapping[str, float], *, marked: Collection[str] = (), x_label: str
) -> Figure:
    """A line for each way, in their order from the top, with a dot at its size.

    The scale is logarithmic: equal distances are equal ratios.

    Args:
        sizes: name -> size, positive.
        marked: names whose dots stand out.
        x_label: the size, with its unit.

    Raises:
        ValueError: no sizes, or one that is not positive.
    """
    if not sizes or not all(size > 0.0 for size in sizes.values()):
        raise ValueError(f"sizes must be positive, one at least, got {dict(sizes)}")
    height = 0.9 + 0.28 * len(sizes)
    figure = Figure(figsize=(7.4, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, (name, size) in enumerate(sizes.items()):
        color = "C3" if name in marked else "0.35"
        axes.plot(size, place, marker="o", markersize=6.0, color=color)
        axes.annotate(
            f"{size:.4g}",
            (size, place),
            xytext=(8.0, 0.0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=color,
        )
    axes.set_yticks(range(len(sizes)), [*sizes])
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set(xscale="log", xlabel=x_label)
    axes.set_xlim(0.8 * min(sizes.values()), 2.0 * max(sizes.values()))
    scales.logarithmic(axes, x=True)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.grid(axis="x", which="both", alpha=0.25)
    return figure
