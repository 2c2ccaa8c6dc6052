r"""In a VAE log p_theta(x) is not fixed: does a greater ELBO still bring q nearer?

    python -m experiments.posterior_gap
    FLAGS=experiments/flags/posterior_gap
    python -m experiments.posterior_gap --flagfile=$FLAGS/quick.flags

ELBO = log p_theta(x) - KL(q || p_theta(z | x)), so the ELBO can rise by either. Four
answers, `--parts`, each on models whose three numbers are exact and computed apart:

  frozen   theta does not move, phi is trained: pPCA with a full and a diagonal q, and
           a tanh decoder of two latents. Every nat the ELBO gains is a nat of KL lost;
           the largest disagreement of any row at any point is in the result.
  joint    theta and phi together, on rows of a known model, test rows measured: log p,
           ELBO and KL, and the distance to the *true* posterior, of q and of the
           model's own posterior, which q follows as it moves.
  lagging  k updates of phi for each one of theta; searches of each row to convergence
           (variational EM), and the posterior itself by quadrature, as the limits. At
           equal steps of theta.
  family   pPCA with W known, its columns correlated, and only the noise learned, over
           the exact population: a diagonal q moves the joint optimum off the maximum
           likelihood, a full one does not.

Writes posterior_gap.json, a JSON file for each part (one that is there and was made
with the same flags is read back, so an interrupted command continues), and a picture
for each. All in float64.
"""

from functools import partial

import jax

from experiments.command import report
from experiments.posterior_gap import family, frozen, joint, lagging
from experiments.posterior_gap.config import Config

PARTS = {"frozen": frozen, "joint": joint, "lagging": lagging, "family": family}
TOLERANCE = 1e-6  # nats, of log p - ELBO - KL in part "frozen"


def main(config: Config) -> int:
    """Measures, prints, draws and writes; fails where exact numbers disagree."""
    folder, result = report.claim(config.workdir), {}
    flags = config.but("workdir", "parts")
    for name in config.parts:
        part = PARTS[name]
        with jax.enable_x64(True):
            result[name] = report.cached(
                folder / f"{name}.json", flags, partial(part.run, config)
            )
        print(part.table(result[name]), flush=True)
        report.draw(folder, part.figures(result[name]))
    curves = {
        "frozen": list(result.get("frozen", {}).values()),
        "joint": result.get("joint", []),
    }
    largest = result["largest_discrepancy"] = {
        part: max(max(curve["discrepancy"]) for curve in of_part)
        for part, of_part in curves.items()
        if of_part
    }
    for part, value in largest.items():
        print(f"{part}: log p - ELBO and KL differ by at most {value:.1e} nats")
    report.write(folder / "posterior_gap.json", config, result)
    if not largest.get("frozen", 0.0) <= TOLERANCE:
        print(f"that is more than {TOLERANCE}: raise --num_nodes")
        return 1
    return 0
