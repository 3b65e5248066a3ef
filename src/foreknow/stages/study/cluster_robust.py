"""Fit least squares to points that come in clusters, with errors that hold for few clusters. Pure numpy.

Points of one training run deviate in the same direction, so errors are clustered by run. With a handful of runs the
usual sandwich estimate is too small. CR2 (Bell and McCaffrey 2002) holds with few clusters: it multiplies each
cluster's residuals by (I - H_gg)^(-1/2), which makes the sandwich unbiased when errors are alike and independent.
Intervals use Student's t with Satterthwaite degrees of freedom, a different number for every contrast (Pustejovsky and
Tipton 2018, 1601.01981, sections 2 and 3). This file implements both because statsmodels has neither.

Coverage of 95 % intervals over the three coefficients, in 1,000 simulated studies with one variant per run (6 epochs,
each run with its own level): CR2 94 to 99 % with 5 to 8 runs, 94 to 97 % with 12 or 20; the wild cluster bootstrap 88
to 95 % with 5 to 8, 93 to 95 % from 12 on; the usual sandwich (CR1 and 1.96) 78 to 90 % with 5 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLAT = 1e-6
"""A singular value counts as zero when it is at most this fraction of the largest."""


class Contrast(NamedTuple):
    """A weighted sum of coefficients, its CR2 standard error, and that error's degrees of freedom."""

    value: float
    se: float
    df: float


@dataclass(frozen=True, eq=False)
class Clustered:
    """A least-squares fit. k coefficients, n points, g clusters."""

    coefficients: Array
    """Shape k."""
    residuals: Array
    """Shape n."""
    r2: float
    bread: Array
    """Shape k x k: the inverse of X'X."""
    covariance: Array
    """Shape k x k: the CR2 covariance of the coefficients."""
    spans: Array
    """Shape g x k x k: X_g' A_g X_g Q. The degrees of freedom come from this and `norms`."""
    norms: Array
    """Shape g x k x k."""
    alone: tuple[int, ...]
    """Clusters without which the coefficients cannot be identified. If there are any, no error can be given."""
    between: float
    """Variance of the part that all points of a cluster share and the model does not explain."""
    within: float
    """Variance of a single point about the level of its cluster."""

    def contrast(self, weights: Array) -> Contrast:
        """Return the weighted sum of the k coefficients, with its error and degrees of freedom."""
        reach = self.spans @ weights
        table = np.diag(np.einsum("i,gij,j->g", weights, self.norms, weights)) - reach @ self.bread @ reach.T
        spread = float(np.sum(table**2))
        df = float(np.trace(table)) ** 2 / spread if spread > 0 else float("nan")
        se = max(float(weights @ self.covariance @ weights), 0.0) ** 0.5
        return Contrast(float(weights @ self.coefficients), se, df)


def collinear(x: Array) -> bool:
    """Return whether a column of x (n x k) is a weighted sum of the others, or x has fewer points than columns."""
    values = np.linalg.svd(x, compute_uv=False)
    return len(x) < x.shape[1] or bool(values[-1] <= FLAT * values[0])


def least_squares(x: Array, y: Array, cluster: NDArray[np.int64]) -> Clustered:
    """Fit y (n) on x (n x k, not collinear). `cluster` (n) numbers each point's cluster from 0 without gaps."""
    bread: Array = np.asarray(np.linalg.inv(x.T @ x), dtype=np.float64)
    coefficients = bread @ x.T @ y
    residuals = y - x @ coefficients
    around = float(np.sum((y - y.mean()) ** 2))
    root = np.linalg.cholesky(bread)
    spans, norms, scores, alone = [], [], [], []
    for g in range(int(cluster.max()) + 1):
        mine = x[cluster == g]
        # I - H_gg differs from I only along the left singular vectors of X_g Q^(1/2)
        left, size, right = np.linalg.svd(mine @ root, full_matrices=False)
        room = 1 - size**2
        if room.min() <= FLAT:
            alone.append(g)
        grown = np.where(room > FLAT, size / np.sqrt(np.maximum(room, FLAT)), 0.0)
        adjusted = (left * grown) @ right @ root.T
        spans.append(mine.T @ adjusted)
        norms.append(adjusted.T @ adjusted)
        scores.append(adjusted.T @ residuals[cluster == g])
    meat = np.array(scores)
    between, within = _components(x, residuals, cluster, bread)
    return Clustered(
        coefficients=coefficients,
        residuals=residuals,
        r2=1 - float(residuals @ residuals) / around if around > 0 else float("nan"),
        bread=bread,
        covariance=meat.T @ meat,
        spans=np.array(spans),
        norms=np.array(norms),
        alone=tuple(alone),
        between=between,
        within=within,
    )


def _components(x: Array, residuals: Array, cluster: NDArray[np.int64], bread: Array) -> tuple[float, float]:
    """Return the variances between and within clusters, by setting two sums of squares equal to their expectations."""
    n, k = x.shape
    of = np.eye(int(cluster.max()) + 1)[cluster]
    sizes, sums = of.sum(axis=0), of.T @ x
    table = np.diag(sizes) - sums @ bread @ sums.T
    found = np.array([residuals @ residuals, np.sum((of.T @ residuals) ** 2 / sizes)])
    of_between = np.array([np.trace(table), np.sum(table**2 / sizes[:, None])])
    of_within = np.array([n - k, np.trace(table / sizes[:, None])])
    system = np.column_stack([of_between, of_within])
    if n <= k:
        return 0.0, 0.0
    if abs(np.linalg.det(system)) <= FLAT * float(np.abs(system).max()) ** 2:
        return float(found[0]) / (n - k), 0.0
    between, within = np.linalg.solve(system, found)
    if between < 0:
        return 0.0, float(found[0]) / (n - k)
    return float(between), max(float(within), 0.0)
