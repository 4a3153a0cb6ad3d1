"""Maps of features in two dimensions: principal components, and t-SNE (van der Maaten, Hinton, 2008)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import MaeliftError
from ..core.optional_imports import require
from ..core.seeding import stream_seed

PERPLEXITY = 30.0
"""Of t-SNE: about how many neighbours of each point it tries to keep; fewer for few points."""
ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Of a feature, relative to the largest one: a network adds up several of float32's."""
FEWEST = 10
"""Points that t-SNE needs at least to show anything."""


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A map: its ``title``, what it shows and doesn't, and ``places`` (N, 2) of the points, each axis from 0 to 1, y upwards."""

    title: str
    words: str
    places: NDArray[np.float64]


def principal_components(features: NDArray[np.floating], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first ``count`` principal components of rows (N, D): scores (N, count), and shares of the variance (count).

    The sign of each is that of its largest loading, so that it doesn't depend on the library. Components that aren't there, or
    are no more than the rounding of float32, are 0.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, values, loadings = np.linalg.svd(centred, full_matrices=False)
    rounding = ROUNDING * float(np.abs(features).max()) * sum(side**0.5 for side in features.shape)
    values = np.where(values > rounding, values, 0)
    signs = np.sign(loadings[np.arange(len(loadings)), np.abs(loadings).argmax(axis=1)])
    found = left * (values * np.where(signs == 0, 1, signs))
    shares = values**2 / max(float((values**2).sum()), np.finfo(np.float64).tiny)
    scores = np.zeros((len(features), count))
    scores[:, : found.shape[1]] = found[:, :count]
    return scores, np.pad(shares[:count], (0, max(0, count - len(shares))))


def pca_map(features: NDArray[np.float32]) -> FeatureMap:
    """The map by the first two principal components of features (N, D)."""
    scores, shares = principal_components(features, 2)
    words = (
        f"The two directions in which the features vary most; they hold {100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of "
        "the variance. What differs in the other directions isn't seen: images that lie together here may be far apart."
    )
    return FeatureMap("Principal components (PCA)", words, _unit_square(scores))


def tsne_map(features: NDArray[np.float32], seed: int) -> FeatureMap | str:
    """The map by t-SNE of features (N, D), by cosine distance; or why there is none."""
    if len(features) < FEWEST:
        return f"No t-SNE map: it needs {FEWEST} images or more."
    try:
        require("scikit-learn")
    except MaeliftError as error:
        return f"No t-SNE map: {error}"
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    scores, _ = principal_components(features, 2)
    spread = scores[:, 0].std()
    if not spread:
        return "No t-SNE map: all features are equal."
    embedding = TSNE(
        perplexity=perplexity,
        metric="cosine",
        init=(scores / spread * 1e-4).astype(np.float32),  # scikit-learn's init="pca", without its random solver
        learning_rate="auto",
        random_state=stream_seed(seed, "t-SNE") % 2**32,
    ).fit_transform(features)
    words = (
        f"Neighbours by cosine are drawn near each other (perplexity {perplexity:.0f}, seed {seed}, begun with the principal "
        "components). Distances between groups, their sizes and their density mean nothing, and groups may appear where there "
        "are none; another seed gives another map."
    )
    return FeatureMap("t-SNE", words, _unit_square(embedding.astype(np.float64)))


def _unit_square(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (N, 2) from 0 to 1 along each axis; in the middle of one along which all are equal."""
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    return np.where(span > 0, (places - low) / np.where(span > 0, span, 1), 0.5)
