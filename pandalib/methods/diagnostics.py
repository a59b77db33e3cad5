"""Has a network collapsed, and does it still tell normal from anomalous?

Two numbers say how much of the feature space is in use, without a label: the variance of the
features, and their effective rank (Roy and Vetterli 2007): with p_i the share of the i-th
eigenvalue in the sum over the covariance matrix,

    effective rank = exp(-sum_i p_i log p_i)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from pandalib.methods.knn import KNN
from pandalib.metrics import roc_auc
from pandalib.validation import as_features


def feature_variance(features: ArrayLike) -> float:
    """Mean over the dimensions of the variance over the images, features (n, d); 0 if constant."""
    return float(as_features(features).var(axis=0, dtype=np.float64).mean())


def effective_rank(features: ArrayLike) -> float:
    """The number of directions in use by features (n, d): 1 to min(n - 1, d); 0 if constant."""
    features = as_features(features)
    # Subtracting the first row makes equal rows exact zeros, which a rounded mean would not.
    centred = features - features[:1].astype(np.float64)
    centred -= centred.mean(axis=0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    eigenvalues = np.clip(np.linalg.eigvalsh(gram), 0, None)
    if eigenvalues.sum() == 0:
        return 0.0
    p = eigenvalues / eigenvalues.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def diagnose(
    gallery: ArrayLike,
    features: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    centre: ArrayLike | None = None,
    k: int = 2,
    normalise: bool = False,
) -> dict:
    """Measure how a network sees its images.

    Parameters
    ----------
    gallery : array, shape (N, d)
        Features of the normal training images.
    features : array, shape (n, d)
        Features of other images.
    labels : array, shape (n,), or None
        0 normal, 1 anomalous; for teaching only, since nothing may be chosen by them.
    centre : array, shape (d,), or None
        To work out the compactness loss of the gallery.
    k, normalise
        As for `KNN`.

    Returns
    -------
    found : dict
        `loss` of the gallery; `roc_auc`; `feature_variance` and `effective_rank` of the features;
        `normal_distance` and `anomalous_distance`, mean kNN scores. What cannot be known without
        labels or centre is None.
    """
    gallery, features = as_features(gallery, "gallery"), as_features(features)
    scores = KNN(k, normalise=normalise).fit(gallery).score(features)
    found = dict(
        loss=None,
        roc_auc=None,
        feature_variance=feature_variance(features),
        effective_rank=effective_rank(features),
        normal_distance=None,
        anomalous_distance=None,
    )
    if centre is not None:
        difference = torch.from_numpy(gallery) - torch.as_tensor(centre).cpu()
        found["loss"] = float(difference.square().mean())  # `pandalib.compactness`
    if labels is not None:
        anomalous = np.asarray(labels).astype(bool)
        found["roc_auc"] = roc_auc(anomalous, scores)
        found["normal_distance"] = float(scores[~anomalous].mean())
        found["anomalous_distance"] = float(scores[anomalous].mean())
    return found
