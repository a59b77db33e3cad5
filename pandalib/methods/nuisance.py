"""Remove a nuisance from features: what must not count is taken out by a linear projection.

A nuisance z is known for the normal images that are learned from: a number (where the part lies,
how bright the lamp was) or a category (which of two cameras). Its cross-covariance with the
features, C = Cov(x, z), has one column for each number in z. With Q, an orthonormal basis of the
columns of C, the features become

    e(x) = x - Q Q^T (x - mean)

Then Cov(e(x), z) = (I - Q Q^T) C = 0: on the images learned from, the best linear predictor of z,
by least squares, is a constant. No projection with this property removes fewer dimensions. It
needs no anomaly, but it cannot tell a nuisance from what goes with it: a direction that carries
both is lost for both.

The aim is that of Red PANDA (Cohen, Kahana and Hoshen 2022), which trains a network to drop a
labelled nuisance; why a detector needs to be told what does not count is argued in "No Free Lunch"
(Reiss, Cohen and Hoshen 2023). The projection is linear erasure as in SAL (Shao, Ziser and Cohen
2023); LEACE (Belrose et al. 2023) is the oblique projection that has the same guarantee and changes
the features least. Projecting onto the complement of the *weights* of a regression, as one step of
INLP (Ravfogel et al. 2020) does, does not have it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin

from pandalib.validation import as_array, as_features, check_fitted

_RANK = 1e-8  # singular values below this fraction of the largest are rounding


class NuisanceProjection(TransformerMixin, BaseEstimator):
    """Project out all directions in which the features vary together with a nuisance.

    Attributes
    ----------
    mean_ : ndarray, shape (d,), float64
    basis_ : ndarray, shape (d, r), float64
        Orthonormal columns; r is at most the number of columns of the nuisance, and one less than
        the number of categories.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> lamp = rng.normal(size=50)
    >>> features = rng.normal(size=(50, 3)) + lamp[:, None] * [0.0, 3.0, 4.0]
    >>> projection = NuisanceProjection().fit(features, lamp)
    >>> clean = projection.transform(features)
    >>> bool(abs(np.corrcoef(clean @ [1.0, 2.0, 3.0], lamp)[0, 1]) < 1e-6)
    True
    >>> NuisanceProjection().fit(features, np.where(lamp > 0, "on", "off")).basis_.shape
    (3, 1)
    """

    def fit(self, features: ArrayLike, nuisance: ArrayLike) -> NuisanceProjection:
        """Find the directions.

        Parameters
        ----------
        features : array, shape (n, d)
            Of normal images.
        nuisance : array, shape (n,) or (n, m)
            Numbers, one column for each; or words, shape (n,), which are categories.

        Raises
        ------
        ValueError
            Another number of rows than features, a nuisance that never changes, or NaN.
        """
        features = as_features(features).astype(np.float64)
        columns = as_columns(nuisance)
        if len(columns) != len(features):
            raise ValueError(
                f"the nuisance has {len(columns)} rows: expected {len(features)}, as features have."
            )
        centred = columns - columns.mean(axis=0)
        spread = centred.std(axis=0)
        if (spread <= 1e-12 * np.abs(columns).max(axis=0)).any():
            raise ValueError(
                "the nuisance is the same for all images: expected at least two values, or nothing "
                "can be learned about it."
            )
        self.mean_ = features.mean(axis=0)
        # In units of their spread, so that a number is not taken for rounding beside another.
        covariance = (features - self.mean_).T @ (centred / spread) / len(features)
        directions, lengths, _ = np.linalg.svd(covariance, full_matrices=False)
        self.basis_ = directions[:, lengths > _RANK * max(lengths[0], np.finfo(float).tiny)]
        return self

    def transform(self, features: ArrayLike) -> np.ndarray:
        """Features (n, d) without these directions, float32 (n, d)."""
        check_fitted(self, "basis_")
        features = as_features(features)
        if features.shape[1] != len(self.mean_):
            raise ValueError(
                f"features have {features.shape[1]} dimensions: expected {len(self.mean_)}, as in "
                "fit."
            )
        along = (features - self.mean_) @ self.basis_  # (n, r)
        return (features - along @ self.basis_.T).astype(np.float32)


def as_columns(nuisance: ArrayLike) -> np.ndarray:
    """Numbers (n,) or (n, m) as float64 (n, m); n words as one column of 0 and 1 for each kind.

    Raises
    ------
    ValueError
        Neither numbers nor words, another shape, no rows, NaN or infinite values.

    Examples
    --------
    >>> as_columns(["mono", "poly", "mono"]).tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    array = as_array(nuisance)
    if array.dtype.kind in "US" and array.ndim == 1 and array.size:
        return (array[:, None] == np.unique(array)).astype(np.float64)
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "biuf":
        raise ValueError(
            f"the nuisance is {array.dtype} {array.shape}: expected numbers of shape (n,) or "
            "(n, m), or n words."
        )
    columns = array.reshape(len(array), -1).astype(np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("the nuisance holds NaN or infinite values: expected finite numbers.")
    return columns
