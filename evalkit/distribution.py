"""Distances between two sets of embeddings: Fréchet distance, its extrapolation, kernel distance, density and coverage.

Pure functions of arrays, numpy and scipy only. An embedding is a row of a float array ``[n, d]``; a *clip* is a few of
them, and a *paired* design has the same clips on both sides: the reference is the very audio that was coded. Decisions,
formulae and simulations: docs/design/distribution.md.

Faults of the data (NaN, unequal dimensions) raise `EvalkitError`; where a value would be meaningless (one embedding,
fewer embeddings than dimensions, all references equal) it is `NotApplicable` with the figures.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalkit.errors import ContractError, DataError, NotApplicable
from evalkit.statistics import FEW_CLUSTERS, bootstrap_weights, expanded_tail

EPS = float(np.finfo(np.float64).eps)

REPLICATES = 2000
"""Bootstrap replicates; they cost a matrix product, not a decomposition."""

BLOCK_ROWS = 1024
"""Embeddings that are centred and multiplied at a time."""

BLOCK_PAIRS = 2**23
"""Pairs of embeddings whose distances are held at a time (32 MB)."""

KAD_SCALE = 100.0
"""What the squared MMD is multiplied with, as ``SCALE_FACTOR`` of kadtk 1.1.0 does."""

BANDWIDTH_MOST = 2000
"""The bandwidth is the median distance between so many reference embeddings at most, drawn by a fixed seed."""

NEIGHBOURS = 5
"""k of density and coverage, the value of Naeem et al."""

EXTRAPOLATION_CLIPS = 8
EXTRAPOLATION_SIZES = 8
EXTRAPOLATION_DRAWS = 2


# -- moments ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean ``[d]`` and scatter ``[d, d]`` (sum of outer products of deviations from the mean), float64.

    They add up: `merge` of the moments of two sets is the moments of their union.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @staticmethod
    def empty(dimension: int) -> Moments:
        """The moments of no embeddings, neutral under `merge`."""
        return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """``[d, d]``, with n - 1.

        Raises:
            NotApplicable: fewer than 2 embeddings.
        """
        if self.count < 2:
            raise NotApplicable(f"{_embeddings(self.count)}: a covariance needs 2")
        return self.scatter / (self.count - 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file of ``count``, ``mean`` and ``scatter``; equal moments give equal bytes."""
        with Path(path).open("wb") as f:
            np.savez(f, count=np.int64(self.count), mean=self.mean, scatter=self.scatter)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Moments:
        """Read what `save` wrote.

        Raises:
            DataError: absent, not such a file, or not the moments of anything.
        """
        names = ("count", "mean", "scatter")
        try:
            with np.load(path, allow_pickle=False) as z:
                count, mean, scatter = (np.asarray(z[name]) for name in names)
        except OSError as error:
            raise DataError(f"{os.fspath(path)!r} cannot be read: {error}") from error
        except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{os.fspath(path)!r} holds no moments ({', '.join(names)} in an npz file): write it by Moments.save"
            ) from error
        cause = _unlike_moments(count, mean, scatter)
        if cause:
            raise DataError(f"{os.fspath(path)!r}: {cause}; write it by Moments.save")
        return Moments(int(count), mean, scatter)


def _unlike_moments(count: np.ndarray, mean: np.ndarray, scatter: np.ndarray) -> str:
    if count.shape != () or count.dtype.kind not in "iu" or count < 0:
        return f"count is {count.dtype} {count.shape}, expected an integer from 0"
    if mean.ndim != 1 or not mean.size or scatter.shape != (mean.size, mean.size):
        return f"mean {mean.shape} and scatter {scatter.shape} do not fit together"
    if mean.dtype != np.float64 or scatter.dtype != np.float64:
        return f"mean is {mean.dtype} and scatter {scatter.dtype}, expected float64"
    if not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
        return "NaN or infinite values"
    size = float(np.abs(scatter).max())
    if (np.diagonal(scatter) < 0).any() or float(np.abs(scatter - scatter.T).max()) > 1e-9 * size:
        return "scatter is not symmetric with a diagonal from 0"
    return ""


def moments(x: Any) -> Moments:
    """Moments of embeddings ``[n, d]``, in float64 and in blocks, whatever the float type given.

    >>> moments(np.array([[1.0, 0.0], [3.0, 0.0]])).covariance.tolist()
    [[2.0, 0.0], [0.0, 0.0]]

    Raises:
        ContractError: not a float array ``[n, d]``, or NaN or infinite values (says how many and where).
    """
    x = checked(x)
    total = Moments.empty(x.shape[1])
    for start in range(0, len(x), BLOCK_ROWS):
        total = merge(total, _block_moments(x[start : start + BLOCK_ROWS]))
    return total


def moments_of(clips: Iterable[Any]) -> Moments:
    """Moments of all embeddings of clips ``[f, d]``, which are read once; memory is that of a block, d^2 and a clip.

    Raises:
        NotApplicable: no clip.
        ContractError: as `moments`; clips of unequal dimensions.
    """
    total: Moments | None = None
    for block in _row_blocks(clips):
        found = moments(block)
        total = found if total is None else merge(total, found)
    if total is None:
        raise NotApplicable("no embeddings")
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets (Chan, Golub and LeVeque 1983, The American Statistician 37(3), eq. 2.1).

    Raises:
        ContractError: unequal dimensions.
    """
    _same_dimension(a.dimension, b.dimension)
    if not a.count or not b.count:
        return b if not a.count else a
    count = a.count + b.count
    delta = b.mean - a.mean
    scatter = np.outer(delta, delta)
    scatter *= a.count * b.count / count
    scatter += a.scatter
    scatter += b.scatter
    return Moments(count, a.mean + delta * (b.count / count), scatter)


def checked(x: Any, what: str = "embeddings") -> np.ndarray:
    """``x`` as an array if it is float ``[n, d]`` and finite.

    Raises:
        ContractError: it is not; the message says how many embeddings are NaN or infinite, and which is the first.
    """
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1] or not np.issubdtype(x.dtype, np.floating):
        raise ContractError(f"{what} are {x.dtype} of shape {x.shape}, expected float [n, d]")
    bad = ~np.isfinite(x)
    if bad.any():
        rows = np.flatnonzero(bad.any(axis=1))
        where = f"the first is number {rows[0]} (dimension {int(np.argmax(bad[rows[0]]))})"
        raise ContractError(f"{len(rows):,} of {len(x):,} {what} hold NaN or infinite values; {where}")
    return x


def _block_moments(x: np.ndarray) -> Moments:
    origin = x[0].astype(np.float64)
    centred = x - origin  # equal embeddings become exact zeros
    mean = centred.mean(axis=0)
    centred -= mean
    return Moments(len(x), origin + mean, centred.T @ centred)


def _row_blocks(clips: Iterable[Any]) -> Iterator[np.ndarray]:
    """Rows of clips put together into blocks of at least `BLOCK_ROWS`; the last may be shorter."""
    held: list[np.ndarray] = []
    rows = 0
    for clip in clips:
        held.append(clip)
        rows += len(clip)
        if held[0].shape[1:] != clip.shape[1:]:
            _same_dimension(held[0].shape[-1], clip.shape[-1])
        if rows >= BLOCK_ROWS:
            yield np.concatenate(held)
            held, rows = [], 0
    if held:
        yield np.concatenate(held)


def _embeddings(count: int) -> str:
    return "no embeddings" if not count else "one embedding" if count == 1 else f"{count:,} embeddings"


def _same_dimension(a: int, b: int) -> None:
    if a != b:
        raise ContractError(f"embeddings of {a:,} and of {b:,} dimensions cannot be compared: one embedder for both")


# -- Fréchet distance -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A set of embeddings as the Fréchet distance sees it; made once for a reference that meets many estimates.

    Attributes:
        count: embeddings.
        mean: ``[d]``.
        root: ``[r, d]`` with ``root.T @ root`` the covariance; r may be less than d.
        trace: of the covariance.
    """

    count: int
    mean: np.ndarray
    root: np.ndarray
    trace: float


def gaussian(x: Moments | np.ndarray) -> Gaussian:
    """A `Gaussian` from moments, or from few embeddings ``[n, d]``, where n <= d makes the cheaper root.

    The root is Cholesky's; of a singular covariance, Cholesky's with pivoting, which ends where no variance above
    d eps of the largest is left. Either is exact for a covariance within d eps of the given one.

    Raises:
        NotApplicable: fewer than 2 embeddings.
    """
    if not isinstance(x, Moments):
        x = checked(x)
        if 2 <= len(x) <= x.shape[1]:
            origin = x[0].astype(np.float64)
            centred = x - origin
            mean = centred.mean(axis=0)
            centred = (centred - mean) / math.sqrt(len(x) - 1)
            return Gaussian(len(x), origin + mean, centred, float(np.sum(np.square(centred))))
        x = moments(x)
    covariance = x.covariance
    variance = np.diagonal(covariance)
    try:
        root = np.linalg.cholesky(covariance).T
    except np.linalg.LinAlgError:
        from scipy.linalg.lapack import dpstrf

        tolerance = len(variance) * EPS * float(variance.max())
        factor, pivots, rank, _ = dpstrf(covariance, tol=tolerance, lower=1)
        root = np.take(np.triu(factor.T[:rank]), np.argsort(pivots), axis=1)
    return Gaussian(x.count, x.mean, root, float(variance.sum()))


def frechet(reference: Moments | Gaussian, estimate: Moments | Gaussian, *, allow_small: bool = False) -> float:
    """Fréchet distance of two Gaussians (squared 2-Wasserstein), 0 or more, in squared units of the embedding.

    ``|mu_r - mu_e|^2 + tr C_r + tr C_e - 2 tr (C_r^1/2 C_e C_r^1/2)^1/2`` (Dowson and Landau 1982, J. Multivariate
    Analysis 12(3); FID: arXiv 1706.08500; FAD: arXiv 1812.08466), covariances with n - 1. With roots
    ``C_r = A A^T``, ``C_e = B B^T`` the last trace is the sum of the singular values of ``A^T B``: the square roots of
    the eigenvalues of the symmetric ``A^T C_e A``, clipped at 0. Squaring loses the small ones; where the bound of that
    loss exceeds 1e-7 of the distance, as for nearly equal sets, the singular values are taken from the product itself.
    No matrix square root of a non-symmetric product, hence no complex values and nothing added to the diagonal.

    Args:
        reference, estimate: moments, or `gaussian` of them, where a reference meets many estimates.
        allow_small: give a value for fewer embeddings than dimensions as well, which is mostly bias.

    Raises:
        NotApplicable: fewer than 2 embeddings; fewer embeddings than dimensions and not ``allow_small``; all reference
            embeddings equal.
        ContractError: unequal dimensions.

    >>> a, b = moments(np.array([[0.0], [2.0]])), moments(np.array([[1.0], [5.0]]))
    >>> round(frechet(a, b), 12)  # (1 - 3)^2 + (sqrt 2 - sqrt 8)^2
    6.0
    """
    _same_dimension(len(reference.mean), len(estimate.mean))
    for side, what in ((reference, "reference"), (estimate, "estimate")):
        require_count(side.count, len(side.mean), what, allow_small)
    a = gaussian(reference) if isinstance(reference, Moments) else reference
    _require_spread(a)
    if _equal(reference, estimate):
        return 0.0
    return _distance(a, gaussian(estimate) if isinstance(estimate, Moments) else estimate, 1e-7)


def require_count(count: int, dimension: int, what: str, allow_small: bool) -> None:
    """
    Raises:
        NotApplicable: no covariance, or one that is mostly bias.
    """
    if count < 2:
        raise NotApplicable(f"{what}: {_embeddings(count)}, a covariance needs 2")
    if count < dimension and not allow_small:
        raise NotApplicable(
            f"{what}: {count:,} embeddings of {dimension:,} dimensions: mostly bias; take more clips, an embedder of "
            f"fewer dimensions or a kernel distance, or ask for it at any n (metrics that end in -any-n)"
        )


def _require_spread(reference: Gaussian) -> None:
    if not reference.trace > 0:
        raise NotApplicable(f"all {reference.count:,} reference embeddings are equal: no distribution to compare with")


def _equal(a: Moments | Gaussian, b: Moments | Gaussian) -> bool:
    if isinstance(a, Moments) and isinstance(b, Moments):
        return a.count == b.count and np.array_equal(a.mean, b.mean) and np.array_equal(a.scatter, b.scatter)
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        return a.count == b.count and np.array_equal(a.mean, b.mean) and np.array_equal(a.root, b.root)
    return False


def _distance(a: Gaussian, b: Gaussian, accuracy: float) -> float:
    """The distance to a relative ``accuracy``, and to some 1e-14 of the traces."""
    base = float(np.sum(np.square(a.mean - b.mean))) + a.trace + b.trace
    product = a.root @ b.root.T
    if not product.size:
        return base
    gram = product @ product.T if product.shape[0] <= product.shape[1] else product.T @ product
    values = np.linalg.eigvalsh(gram)
    lost = (
        math.sqrt(len(values)) * EPS * max(float(values[-1]), 0.0)
    )  # error of an eigenvalue; of its root: half over it
    roots = np.sqrt(np.maximum(values, 0.0))
    error = float(np.minimum(lost / np.maximum(2 * roots, 1e-300), math.sqrt(lost)).sum())
    distance = base - 2 * float(roots.sum())
    if 2 * error > accuracy * distance:
        distance = base - 2 * float(np.linalg.svd(product, compute_uv=False).sum())
    return max(0.0, distance)


# -- what each clip adds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Fréchet distance with its derivative by either set: ``d value = 2 shift . d(mu_r - mu_e) + <I - T_r, dC_r> +
    <I - T_e, dC_e>``, with ``T = P.T @ P`` and P of `reference` and `estimate` ``[k, d]``.

    ``T_e = C_r^1/2 (C_r^1/2 C_e C_r^1/2)^-1/2 C_r^1/2`` is the optimal transport map (Bures gradient), and T_r its
    counterpart; with ``A^T B = V S W^T`` they are ``A V S^-1 V^T A^T`` and ``B W S^-1 W^T B^T``.
    """

    value: float
    shift: np.ndarray
    reference: np.ndarray
    estimate: np.ndarray
    trace_of_root: float


def sensitivity(reference: Gaussian, estimate: Gaussian) -> Sensitivity:
    """Distance and derivative by one singular value decomposition.

    Singular values up to max(r) eps of the largest are taken as 0, their inverses too (pseudo-inverse): the clips
    themselves cannot move the sets in these directions.
    """
    _same_dimension(len(reference.mean), len(estimate.mean))
    _require_spread(reference)
    product = reference.root @ estimate.root.T
    shift = reference.mean - estimate.mean
    d = len(shift)
    if not product.size:
        nothing = np.zeros((0, d))
        total, toward_reference, toward_estimate = 0.0, nothing, nothing
    else:
        left, values, right = np.linalg.svd(product, full_matrices=False)
        kept = values > max(product.shape) * EPS * values[0]
        total = float(values.sum())
        weight = np.sqrt(1 / values[kept])[:, None]
        toward_estimate = (left[:, kept].T @ reference.root) * weight
        toward_reference = (right[kept] @ estimate.root) * weight
    value = float(np.sum(np.square(shift))) + reference.trace + estimate.trace - 2 * total
    return Sensitivity(max(0.0, value), shift, toward_reference, toward_estimate, total)


def contributions(
    found: Sensitivity, reference: Gaussian, estimate: Gaussian, reference_clips: Any, estimate_clips: Any
) -> np.ndarray:
    """What each clip adds to the distance, to first order: the derivative by how often the clip counts, ``[clips]``.

    A clip counts on both sides (paired design); for one side alone give None for the other. A clip that is like the
    average has 0, one that brings the sets closer is negative; the sum is close to 0, since counting all clips twice
    hardly changes the distance.

    Args:
        found: `sensitivity` of the two.
        reference_clips, estimate_clips: iterables of ``[f, d]`` a clip, in the same order, or None.
    """
    sides = []
    if reference_clips is not None:
        sides.append(_side(reference_clips, reference, found.shift, found.reference, found.trace_of_root))
    if estimate_clips is not None:
        sides.append(_side(estimate_clips, estimate, -found.shift, found.estimate, found.trace_of_root))
    return np.sum(sides, axis=0)


def _side(clips: Any, whole: Gaussian, shift: np.ndarray, project: np.ndarray, trace_of_root: float) -> np.ndarray:
    """Derivative by the weight of each clip: by the mean, by the scatter, and by the count in n - 1."""
    out: list[np.ndarray] = []
    lengths: list[int] = []

    def counted() -> Iterator[np.ndarray]:
        for clip in clips:
            lengths.append(len(clip))
            yield clip

    for block in _row_blocks(counted()):
        centred = block - whole.mean
        squares = np.einsum("nd,nd->n", centred, centred)
        moved = centred @ project.T
        squares -= np.einsum("nk,nk->n", moved, moved)
        out.append(2 * (centred @ shift) / whole.count + squares / (whole.count - 1))
    each = np.concatenate(out)
    starts = np.cumsum([0, *lengths[:-1]])
    sums = np.add.reduceat(each, starts)
    return sums - np.array(lengths) * (whole.trace - trace_of_root) / (whole.count - 1)


def linear_interval(
    value: float, influence: Any, clusters: Any, *, seed: int, level: float = 0.95, lowest: float = -math.inf
) -> tuple[float | None, float | None, str]:
    """Low and high end of a cluster bootstrap of the linearised measure (infinitesimal jackknife), and a note.

    A replicate is ``value + sum over clips of (w - 1) influence``, w how often the clip's cluster was drawn; the
    expanded percentile interval of `evalkit.statistics`. It is the scatter of the measure at this number of clips, not
    its bias; resampling the sets themselves would add their bias once more (docs/design/distribution.md).

    Returns:
        Ends, not below ``lowest``; None for both with a reason in the note for one cluster.
    """
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(labels) < 2:
        return None, None, "one cluster: no interval"
    sums = np.bincount(codes, weights=np.asarray(influence, dtype=float), minlength=len(labels))
    drawn = np.concatenate([w @ sums for w in bootstrap_weights(labels, REPLICATES, seed)])
    low, high = _ends(value + drawn - sums.sum(), len(labels), level)
    return max(lowest, low), max(lowest, high), few_clusters(len(labels))


def few_clusters(count: int) -> str:
    return f"few clusters ({count}): interval too narrow" if count < FEW_CLUSTERS else ""


def _ends(values: np.ndarray, clusters: int, level: float = 0.95) -> tuple[float, float]:
    tail = expanded_tail(level, clusters)
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull")
    return float(low), float(high)


# -- extrapolation to infinitely many embeddings ----------------------------------------------------------------------


@dataclass(frozen=True)
class Extrapolation:
    """A line through Fréchet distances of subsets against 1/n.

    Attributes:
        value: ``intercept``, or 0 where that is negative, which no distance is.
        intercept: of the line at 1/n = 0.
        slope: distance times embeddings: the bias at n is slope / n.
        r2: share of the variance of the distances that the line explains; 1 where they are all equal.
        sizes, distances: the points, in the order in which they were drawn.
    """

    value: float
    intercept: float
    slope: float
    r2: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolate(sizes: Sequence[int], distances: Sequence[float]) -> Extrapolation:
    """Least squares of distances on 1/n.

    >>> extrapolate([100, 200, 400], [1.1, 1.05, 1.025]).intercept.__round__(9)
    1.0
    """
    x, y = 1 / np.asarray(sizes, dtype=float), np.asarray(distances, dtype=float)
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    intercept = float(y.mean() - slope * x.mean())
    total = float(dy @ dy)
    r2 = 1.0 if total == 0 else 1 - float(np.sum(np.square(dy - slope * dx))) / total
    return Extrapolation(max(0.0, intercept), intercept, slope, r2, tuple(map(int, sizes)), tuple(map(float, y)))


def frechet_infinity(
    reference: Sequence[np.ndarray] | Moments | Gaussian,
    estimate: Sequence[np.ndarray],
    *,
    paired: bool,
    seed: int,
    draws: int = EXTRAPOLATION_DRAWS,
    allow_small: bool = False,
    whole: tuple[float, np.ndarray] | None = None,
) -> Extrapolation:
    """Fréchet distance extrapolated to infinitely many embeddings, from subsets of the clips.

    FID-infinity (Chong and Forsyth, arXiv 1911.07023), FAD-infinity (Gui et al., arXiv 2311.01616): the bias of the
    distance falls as 1/n, so that the line through distances at several n has the unbiased one as its intercept. Here
    subsets are drawn without replacement and by a seed: ``draws`` orders of the clips, each cut where its first clips
    hold 8 numbers of embeddings that are evenly spaced in 1/n from n/4 to n. No subset is smaller than d where n >= 2d.

    What the drawn clips add to the distance to first order (`contributions`, per clip, less its mean) is taken off each
    point. Over all subsets it is 0 on average: the line stays, and most of the scatter about it, which is that of
    which clips were drawn, goes.

    Args:
        reference: embeddings of each clip ``[f, d]``; or moments (or `gaussian`) that stay as they are, as in Gui et
            al. and in fadtk.
        estimate: embeddings of each clip.
        paired: both sides have the same clips, and a subset has the same clips on both. False with clips on both sides
            takes the same share of either, drawn apart.
        allow_small: extrapolate also where n < 2d.
        whole: the distance at n and the `contributions` of the clips, if known (paired only).

    Raises:
        NotApplicable: fewer than 8 clips, n < 2d and not ``allow_small``, and as `frechet`.
        ContractError: paired with unequal numbers of clips.
    """
    fixed = gaussian(reference) if isinstance(reference, Moments) else reference
    sides = [estimate] if isinstance(fixed, Gaussian) else [estimate, fixed]
    counts = [np.array([len(clip) for clip in side]) for side in sides]
    if paired and (isinstance(fixed, Gaussian) or len(counts[0]) != len(counts[1])):
        raise ContractError("a paired extrapolation needs the same clips on both sides")
    few = min(map(len, counts))
    if few < EXTRAPOLATION_CLIPS:
        raise NotApplicable(f"{few} clips: an extrapolation over subsets of clips needs {EXTRAPOLATION_CLIPS}")
    n, d = min(int(c.sum()) for c in counts), estimate[0].shape[1]
    if n < 2 * d and not allow_small:
        raise NotApplicable(
            f"{n:,} embeddings of {d:,} dimensions: an extrapolation in 1/n needs sizes from {d:,} (fewer embeddings "
            f"than dimensions are mostly bias) to n of at least twice that"
        )
    smallest = max(n / 4, d) if n >= 2 * d else n / 4
    shares = 1 / np.linspace(n / smallest, 1, EXTRAPOLATION_SIZES)[:-1]
    value, added = _whole(sides, fixed, paired) if whole is None else (whole[0], [whole[1]])
    added = [c - c.mean() for c in added]
    sizes, distances = [], []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw, 1])
        orders = [rng.permutation(len(c)) for c in counts]
        if paired:
            orders[1] = orders[0]
        cuts = [_cuts(c[o], shares) for c, o in zip(counts, orders, strict=True)]
        walks = [_prefixes(*each) for each in zip(sides, orders, cuts, strict=True)]
        for i, found in enumerate(zip(*walks, strict=True)):
            first = fixed if isinstance(fixed, Gaussian) else found[1]
            drawn = [c[o[: cut[i]]].mean() * len(c) for c, o, cut in zip(added, orders, cuts, strict=False)]
            sizes.append(min(g.count for g in found))
            distances.append((0.0 if _equal(first, found[0]) else _distance(first, found[0], 1e-3)) - sum(drawn))
        sizes.append(n)
        distances.append(value)
    if len(set(sizes)) < 3:
        raise NotApplicable(f"the clips are too unequal: subsets of only {len(set(sizes))} sizes can be made of them")
    return extrapolate(sizes, distances)


def _whole(
    sides: list[Sequence[np.ndarray]], fixed: Sequence[np.ndarray] | Gaussian, paired: bool
) -> tuple[float, list[np.ndarray]]:
    """The distance at n, and what the clips of each side (paired: of both together) add to it."""
    second = gaussian(moments_of(sides[0]))
    first = fixed if isinstance(fixed, Gaussian) else gaussian(moments_of(fixed))
    if _equal(first, second):
        return 0.0, [np.zeros(len(s)) for s in sides]
    found = sensitivity(first, second)
    if paired:
        added = [contributions(found, first, second, sides[1], sides[0])]
    else:
        added = [contributions(found, first, second, None, sides[0])]
        added += [contributions(found, first, second, s, None) for s in sides[1:]]
    return found.value, added


def _cuts(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many clips of an order hold at least each share of the embeddings."""
    reached = np.cumsum(counts)
    return 1 + np.searchsorted(reached, shares * reached[-1] * (1 - 1e-12))


def _prefixes(side: Sequence[np.ndarray], order: np.ndarray, cuts: np.ndarray) -> Iterator[Gaussian]:
    """The `Gaussian` of each prefix of an order: of the embeddings themselves while these are no more than d."""
    held: list[np.ndarray] = []
    total: Moments | None = None
    start = 0
    for stop in cuts:
        new = [side[i] for i in order[start:stop]]
        start = stop
        if total is None:
            held += new
            if sum(map(len, held)) <= held[0].shape[1]:
                yield gaussian(np.concatenate(held))
                continue
            new, held, total = held, [], Moments.empty(held[0].shape[1])
        yield gaussian(total := merge(total, moments_of(new)) if new else total)


# -- pairs of embeddings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PairSums:
    """Sums of a function of two embeddings over the pairs of two sets, without those that do not count.

    Attributes:
        total, pairs: the sum, and over how many pairs.
        rows, row_pairs: the same by the clip of the first set ``[clips]``.
        columns, column_pairs: the same by the clip of the second set.
        table, table_pairs: by the clusters of both ``[G, G]``; None where no clusters were given.
    """

    total: float
    pairs: float
    rows: np.ndarray
    row_pairs: np.ndarray
    columns: np.ndarray
    column_pairs: np.ndarray
    table: np.ndarray | None = None
    table_pairs: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return self.total / self.pairs

    def without_each(self) -> np.ndarray:
        """The mean without each clip, where both sets have the same clips ``[clips]``."""
        rest = self.pairs - self.row_pairs - self.column_pairs
        return (self.total - self.rows - self.columns) / rest

    def resampled(self, drawn: np.ndarray) -> np.ndarray:
        """Means ``[replicates]`` for clusters that were drawn so many times ``[replicates, G]``.

        Two draws of one cluster are two clusters, except that no pairs between them count: they would be pairs of a
        clip with itself. Pairs within a cluster count once a draw.
        """
        assert self.table is not None and self.table_pairs is not None
        return _quadratic(drawn, self.table) / _quadratic(drawn, self.table_pairs)


def _quadratic(drawn: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.einsum("rg,rg->r", drawn @ table, drawn) - (drawn * (drawn - 1)) @ np.diagonal(table)


def _codes(groups: Any, count: int) -> np.ndarray:
    """Group codes 0, 1, ... in the order of the rows; None: every row its own."""
    if groups is None:
        return np.arange(count)
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    if codes.shape != (count,):
        raise ContractError(f"{count:,} embeddings, group labels of shape {codes.shape}: one label an embedding")
    return codes


def _starts(codes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1])


def _squared(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Squared distances of float32 rows of x to all of y, in blocks: first row, one past the last, ``[rows, len(y)]``.

    The same x and y give the same bits, wherever they are called from.
    """
    y_norm = np.einsum("nd,nd->n", y, y)
    step = max(1, BLOCK_PAIRS // len(y))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        d = part @ y.T
        d *= -2
        d += np.einsum("nd,nd->n", part, part)[:, None]
        d += y_norm
        np.maximum(d, 0, out=d)
        yield start, start + len(part), d


def _pair_sums(
    x: np.ndarray,
    y: np.ndarray,
    x_codes: np.ndarray,
    y_codes: np.ndarray,
    function: Callable[[np.ndarray, int, int], np.ndarray],
    *,
    apart: bool,
    clusters: tuple[np.ndarray, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
    sums: np.ndarray | None = None,
) -> PairSums:
    """Sums of ``function(squared distances, first row, end)``; ``apart`` leaves out pairs of rows with equal codes.

    Args:
        x_codes, y_codes: ascending codes 0, 1, ... of the clips.
        clusters: of the clips of x and of y, as codes of the same clusters.
        weights: of the rows of x.
        sums: ``[len(x)]``, is filled with the row sums.
    """
    starts = _starts(y_codes)
    clips = (int(x_codes[-1]) + 1, int(y_codes[-1]) + 1)
    rows, columns = np.zeros(clips[0]), np.zeros(clips[1])
    size = 1 + max(int(c.max()) for c in clusters) if clusters else 0
    table = np.zeros((size, size))
    for start, stop, d in _squared(x, y):
        values = function(d, start, stop)
        summed = np.add.reduceat(values, starts, axis=1, dtype=np.float64)
        codes = x_codes[start:stop]
        if apart:
            inside = codes < clips[1]
            summed[np.flatnonzero(inside), codes[inside]] = 0
        if weights is not None:
            summed *= weights[start:stop, None]
        if sums is not None:
            sums[start:stop] = summed.sum(axis=1)
        at = _starts(codes)
        by_clip = np.add.reduceat(summed, at, axis=0)
        here = codes[at]
        rows[here] += by_clip.sum(axis=1)
        columns += by_clip.sum(axis=0)
        if clusters:
            for row, cluster in zip(by_clip, clusters[0][here], strict=True):
                table[cluster] += np.bincount(clusters[1], weights=row, minlength=size)
    nx, ny = np.bincount(x_codes).astype(float), np.bincount(y_codes).astype(float)
    shared = np.zeros(max(clips))
    if apart:
        both = min(clips)
        shared[:both] = nx[:both] * ny[:both]
    row_pairs, column_pairs = nx * ny.sum() - shared[: clips[0]], ny * nx.sum() - shared[: clips[1]]
    pairs = None
    if clusters:
        gx, gy = (np.bincount(c, weights=n, minlength=size) for c, n in zip(clusters, (nx, ny), strict=True))
        pairs = np.outer(gx, gy)
        if apart:
            both = min(clips)
            pairs -= np.diag(np.bincount(clusters[0][:both], weights=shared[:both], minlength=size))
    total = float(rows.sum())
    return PairSums(
        total,
        float(row_pairs.sum()),
        rows,
        row_pairs,
        columns,
        column_pairs,
        table if clusters else None,
        pairs,
    )


def median_distance(x: Any) -> float:
    """Median Euclidean distance of all pairs of rows of ``[n, d]``: the bandwidth of the kernel.

    Of more than 2,000 rows, that of 2,000 drawn by a fixed seed, so that it belongs to the reference alone.

    >>> median_distance(np.array([[0.0], [1.0], [3.0]]))
    2.0

    Raises:
        NotApplicable: fewer than 2 rows, or a median of 0.
    """
    x = checked(x)
    if len(x) < 2:
        raise NotApplicable(f"reference: {_embeddings(len(x))}, a distance between them needs 2")
    if len(x) > BANDWIDTH_MOST:
        x = x[np.sort(np.random.default_rng(0).choice(len(x), BANDWIDTH_MOST, replace=False))]
    x = x - x[0].astype(np.float64)
    norm = np.einsum("nd,nd->n", x, x)
    squared = norm[:, None] + norm - 2 * (x @ x.T)
    above = squared[np.triu_indices(len(x), 1)]
    found = float(np.median(np.sqrt(np.maximum(above, 0))))
    if not found > 1e-9 * math.sqrt(float(norm.max(initial=0.0))):
        raise NotApplicable("at least half of the reference embeddings are equal: the median distance is 0")
    return found


def scaled(x: Any, centre: np.ndarray, unit: float) -> np.ndarray:
    """``(x - centre) / unit`` as float32, worked out in float64."""
    x = checked(x)
    out = np.empty(x.shape, dtype=np.float32)
    for start in range(0, len(x), BLOCK_ROWS):
        out[start : start + BLOCK_ROWS] = (x[start : start + BLOCK_ROWS] - centre) / unit
    return out


def kernel_sums(
    x: np.ndarray,
    y: np.ndarray,
    x_codes: np.ndarray,
    y_codes: np.ndarray,
    *,
    apart: bool,
    clusters: tuple[np.ndarray, np.ndarray] | None = None,
) -> PairSums:
    """Sums of ``exp(-|x - y|^2 / 2)`` of rows in units of the bandwidth (`scaled`); see `_pair_sums`."""

    def kernel(d: np.ndarray, start: int, stop: int) -> np.ndarray:
        d *= -0.5
        return np.exp(d, out=d)

    return _pair_sums(x, y, x_codes, y_codes, kernel, apart=apart, clusters=clusters)


def kernel_distance(
    reference: Any,
    estimate: Any,
    *,
    reference_groups: Any = None,
    estimate_groups: Any = None,
    paired: bool = False,
    bandwidth: float | None = None,
) -> float:
    """Kernel audio distance (KAD): 100 times the unbiased squared MMD with a Gaussian kernel.

    ``100 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))``, ``k = exp(-|a - b|^2 / (2 s^2))``, s the median pairwise
    distance within the reference (`median_distance`). Chung et al. 2025, arXiv 2502.15602; the factor is that of kadtk
    1.1.0, which takes s from its second argument, the evaluated set: here it is the reference's, so that systems are
    compared with one kernel. Unbiased (Gretton et al. 2012, JMLR 13, lemma 6): the mean over many draws is the
    distance of the populations at any n, hence single values may be negative when that is near 0.

    Paired means leave out the pairs of one clip in all three terms: x and its own coded version are not independent,
    and with them k(x, y) would be too large. What is left is unbiased for the two populations, and exactly 0 for an
    estimate that is the reference.

    Args:
        reference, estimate: ``[n, d]``, ``[m, d]``.
        reference_groups, estimate_groups: clip of each row; pairs of rows of one clip do not count. None: every row is
            a clip (where ``paired``, rows of equal number are of one clip).
        paired: labels mean the same clips on both sides.
        bandwidth: s, if known.

    Raises:
        NotApplicable: fewer than 2 clips a side; s is 0.
        ContractError: unequal dimensions, NaN.
    """
    reference, estimate = checked(reference, "reference embeddings"), checked(estimate, "estimate embeddings")
    _same_dimension(reference.shape[1], estimate.shape[1])
    x_codes, y_codes = _both_codes(reference_groups, estimate_groups, len(reference), len(estimate), paired)
    for codes, what in ((x_codes, "reference"), (y_codes, "estimate")):
        if len(np.unique(codes)) < 2:
            raise NotApplicable(f"{what}: fewer than 2 clips, and pairs of one clip do not count")
    unit = median_distance(reference) if bandwidth is None else bandwidth
    same = paired and np.array_equal(reference, estimate) and np.array_equal(x_codes, y_codes)
    if same:
        return 0.0
    x_order, y_order = np.argsort(x_codes, kind="stable"), np.argsort(y_codes, kind="stable")
    centre = reference.mean(axis=0, dtype=np.float64)
    x, y = scaled(reference[x_order], centre, unit), scaled(estimate[y_order], centre, unit)
    xc, yc = x_codes[x_order], y_codes[y_order]
    rr = kernel_sums(x, x, xc, xc, apart=True)
    ee = kernel_sums(y, y, yc, yc, apart=True)
    re = kernel_sums(x, y, xc, yc, apart=paired)
    return KAD_SCALE * (rr.mean + ee.mean - 2 * re.mean)


def _both_codes(a: Any, b: Any, n: int, m: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    if not paired or (a is None and b is None):
        return _codes(a, n), _codes(b, m)
    first = np.asarray(a if a is not None else np.arange(n))
    second = np.asarray(b if b is not None else np.arange(m))
    if set(first.tolist()) != set(second.tolist()):
        raise ContractError("paired sets must have the same clips on both sides")
    return _codes(first, n), _codes(second, m)


def kernel_interval(rr: PairSums, ee: PairSums, re: PairSums, *, seed: int) -> tuple[float | None, float | None, str]:
    """Cluster bootstrap interval of the kernel distance, from sums by cluster.

    A replicate has the value's own form with how often each cluster was drawn as weights; pairs of a clip with itself
    never count, so that replicates are not biased as those of a naive bootstrap are.
    """
    assert rr.table is not None
    count = len(rr.table)
    if count < 2:
        return None, None, "one cluster: no interval"
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.concatenate(
            [
                rr.resampled(w) + ee.resampled(w) - 2 * re.resampled(w)
                for w in (b.astype(float) for b in bootstrap_weights(np.arange(count), REPLICATES, seed))
            ]
        )
    return _interval(KAD_SCALE * values, count)


# -- density and coverage ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cover:
    """Density and coverage with what their intervals are made of.

    Attributes:
        density: of ``members``, over the embeddings of the estimate.
        coverage: share of the reference's balls that hold an embedding of the estimate.
        members: sums over (ball, embedding of the estimate within it) of the ball's weight, by clips and clusters.
        covered: bool ``[n]``, in the order of the reference's rows.
    """

    density: float
    coverage: float
    members: PairSums
    covered: np.ndarray


@dataclass(frozen=True, eq=False)
class Balls:
    """Balls about reference embeddings, each to its k-th nearest neighbour.

    Attributes:
        limits: squared radii, float32 ``[n]``.
        weights: what an embedding in the ball adds to the density, ``[n]``: 1 / k, or less where there are ties.
        closed: whether the border belongs to the ball.
    """

    limits: np.ndarray
    weights: np.ndarray
    closed: bool


def balls(x: np.ndarray, codes: np.ndarray, *, closed: bool, k: int = NEIGHBOURS) -> Balls:
    """The balls of rows, with neighbours looked for in other clips.

    Not closed: as published, open balls and 1 / k. Closed: the border belongs to the ball, with 1e-6 of the squared
    length of the row for rounding, and a ball that holds more than k neighbours, since some are equal (digital silence
    in many clips), has 1 / that number.

    Args:
        x: float32 ``[n, d]`` (`scaled`).
        codes: ascending clip codes.

    Raises:
        NotApplicable: some row has fewer than k rows of other clips.
    """
    counts = np.bincount(codes)
    if len(x) - int(counts.max()) < k:
        raise NotApplicable(
            f"{len(x):,} reference embeddings of {len(counts):,} clips: {k} neighbours in other clips are needed"
        )
    ends = np.cumsum(counts)
    limits, weights = np.empty(len(x), dtype=np.float32), np.full(len(x), 1 / k)
    margin = np.float32(1e-6) * np.einsum("nd,nd->n", x, x)
    for start, stop, d in _squared(x, x):
        for row, code in zip(d, codes[start:stop], strict=True):
            row[ends[code] - counts[code] : ends[code]] = np.inf
        limits[start:stop] = np.partition(d, k - 1, axis=1)[:, k - 1]
        if closed:
            limits[start:stop] += margin[start:stop]
            weights[start:stop] = 1 / np.count_nonzero(d <= limits[start:stop, None], axis=1)
    return Balls(limits, weights, closed)


def cover(
    x: np.ndarray,
    y: np.ndarray,
    x_codes: np.ndarray,
    y_codes: np.ndarray,
    around: Balls,
    *,
    paired: bool,
    clusters: tuple[np.ndarray, np.ndarray] | None = None,
) -> Cover:
    """Density and coverage of y in the balls ``around`` the rows of x.

    Args:
        x, y: float32 rows in the same units; clip codes ascending.
        paired: an embedding does not count in the balls of its own clip.
    """
    bound = around.limits[:, None]

    def inside(d: np.ndarray, start: int, stop: int) -> np.ndarray:
        return d <= bound[start:stop] if around.closed else d < bound[start:stop]

    within = np.zeros(len(x))
    members = _pair_sums(
        x, y, x_codes, y_codes, inside, apart=paired, clusters=clusters, weights=around.weights, sums=within
    )
    covered = within > 0
    return Cover(members.total / len(y), float(covered.mean()), members, covered)


def density_interval(found: Cover, *, seed: int) -> tuple[float | None, float | None, str]:
    """Cluster bootstrap interval of the density, with the balls as they are and a clip's weight on both sides."""
    table = found.members.table
    assert table is not None
    if len(table) < 2:
        return None, None, "one cluster: no interval"
    scale = found.density / found.members.mean if found.members.total else 0.0
    drawn = bootstrap_weights(np.arange(len(table)), REPLICATES, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = scale * np.concatenate([found.members.resampled(w.astype(float)) for w in drawn])
    return _interval(values, len(table))


def coverage_interval(found: Cover, clusters: Any, *, seed: int) -> tuple[float | None, float | None, str]:
    """Cluster bootstrap interval of the coverage, with the balls and what they hold as they are.

    Args:
        clusters: of each row of the reference.
    """
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(labels) < 2:
        return None, None, "one cluster: no interval"
    held, all_ = np.bincount(codes, weights=found.covered), np.bincount(codes)
    drawn = bootstrap_weights(labels, REPLICATES, seed)
    return _interval(np.concatenate([(w @ held) / (w @ all_) for w in drawn]), len(labels))


def _interval(values: np.ndarray, clusters: int) -> tuple[float | None, float | None, str]:
    bad = int((~np.isfinite(values)).sum())  # one cluster, of a single clip, was drawn every time
    if bad:
        return None, None, f"no interval: {bad} of {len(values)} resamples have no pair of different clips"
    low, high = _ends(values, clusters)
    return low, high, few_clusters(clusters)


def density_coverage(
    reference: Any,
    estimate: Any,
    *,
    reference_groups: Any = None,
    estimate_groups: Any = None,
    paired: bool = False,
    k: int = NEIGHBOURS,
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797) of an estimate ``[m, d]`` in a reference ``[n, d]``.

    The ball of a reference embedding reaches to its k-th nearest neighbour in the reference. Density: in how many balls
    an embedding of the estimate lies, over k; about 1 for equal distributions, above 1 where the estimate is bunched in
    the dense parts. Coverage: the share of balls that hold any embedding of the estimate, 0 to 1. Without groups and
    not paired this is the definition, with the open balls of the authors' ``prdc``.

    With groups, or paired, neighbours are looked for in other clips only and the balls are closed (`balls`); paired, an
    embedding does not count in its own clip's balls either. The reference itself then has density 1 and coverage 1.

    Raises:
        NotApplicable: too few reference embeddings; all of them equal.
    """
    reference, estimate = checked(reference, "reference embeddings"), checked(estimate, "estimate embeddings")
    _same_dimension(reference.shape[1], estimate.shape[1])
    if not len(estimate):
        raise NotApplicable("estimate: no embeddings")
    x_codes, y_codes = _both_codes(reference_groups, estimate_groups, len(reference), len(estimate), paired)
    x_order, y_order = np.argsort(x_codes, kind="stable"), np.argsort(y_codes, kind="stable")
    centre, unit = spread(reference)
    x = scaled(reference[x_order], centre, unit)
    y = x if np.array_equal(reference, estimate) else scaled(estimate[y_order], centre, unit)
    xc, yc = x_codes[x_order], y_codes[y_order]
    closed = paired or reference_groups is not None
    found = cover(x, y, xc, yc, balls(x, xc, closed=closed, k=k), paired=paired)
    return found.density, found.coverage


def spread(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean ``[d]`` of rows, and root of the mean squared distance from it.

    Raises:
        NotApplicable: no rows, or all equal.
    """
    if not len(x):
        raise NotApplicable("reference: no embeddings")
    origin = x[0].astype(np.float64)
    mean = origin + np.mean(x - origin, axis=0)
    unit = math.sqrt(sum(float(np.sum(np.square(x[i : i + BLOCK_ROWS] - mean))) for i in range(0, len(x), BLOCK_ROWS)))
    if not unit > 0:
        raise NotApplicable(f"all {len(x):,} reference embeddings are equal: no distribution to compare with")
    return mean, unit / math.sqrt(len(x))


def halves(sizes: Sequence[int], clusters: Sequence[str], rng: np.random.Generator) -> np.ndarray | None:
    """Which clips are in the second half of a random split by cluster, bool ``[clips]``; None for one cluster.

    Clusters in random order go to the half that has fewer embeddings.
    """
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(labels) < 2:
        return None
    weight = np.bincount(codes, weights=np.asarray(sizes, dtype=float))
    second = np.zeros(len(labels), dtype=bool)
    filled = [0.0, 0.0]
    for g in rng.permutation(len(labels)):
        side = int(filled[1] < filled[0])
        second[g] = bool(side)
        filled[side] += weight[g]
    return second[codes]
