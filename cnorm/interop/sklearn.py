"""Batch normalization as a scikit-learn transformer."""

import numpy as np

import cnorm.functional as F

from ._missing import needs

with needs("sklearn"):
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["BatchNorm"]


class BatchNorm(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Normalize each feature by the mean and the biased variance seen in training.

    ``(X - mean_) / sqrt(var_ + eps)``. `partial_fit` takes the training data in batches: either
    merged exactly, so that the batches give what `fit` on all of them would, or averaged with
    exponential weights, as BatchNorm does in a network, so that old batches fade.

    Parameters
    ----------
    eps : float, default=1e-5
        Added to the variance. Positive: constant features become 0.
    momentum : float or None, default=None
        Share of a new batch in the statistics, 0 to 1. None merges batches by their sizes.

    Attributes
    ----------
    mean_, var_ : ndarray of shape (n_features,)
        Of the training data, float64.
    n_samples_seen_ : int
        Samples of all batches.
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Where `X` has feature names.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm.interop.sklearn import BatchNorm
    >>> X = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> norm = BatchNorm(eps=1e-12).fit(X)
    >>> norm.transform(X)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> norm.inverse_transform([[0, 0]])
    array([[ 2., 20.]])
    """

    def __init__(self, eps=1e-5, momentum=None):
        self.eps = eps
        self.momentum = momentum

    def fit(self, X, y=None):
        """Take the statistics of `X`, forgetting all others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        BatchNorm
            Itself.
        """
        return self._update(X, first=True)

    def partial_fit(self, X, y=None):
        """Add a batch to the statistics; the first one is taken as it is.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        BatchNorm
            Itself.
        """
        return self._update(X, first=not hasattr(self, "n_samples_seen_"))

    def transform(self, X):
        """Normalize.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            float32 and float16 stay so, everything else becomes float64.
        """
        check_is_fitted(self)
        return F.batch_norm(self._checked(X), self.mean_, self.var_, eps=self.eps)

    def inverse_transform(self, X):
        """Give normalized features their mean and variance back.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        zeros, ones = np.zeros_like(self.mean_), np.ones_like(self.var_)
        scale = np.sqrt(self.var_ + self.eps)
        return F.batch_norm(self._checked(X), zeros, ones, scale, self.mean_, eps=0)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags

    def _checked(self, X, reset=False):
        return validate_data(self, X, dtype=[np.float64, np.float32, np.float16], reset=reset)

    def _update(self, X, first):
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, but got {self.eps}")
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be None or from 0 to 1, but got {self.momentum}")
        X = self._checked(X, reset=first)
        n, (mean, var) = len(X), _moments(X)
        if first:
            self.mean_, self.var_, self.n_samples_seen_ = mean, var, n
            return self
        self.n_samples_seen_ += n
        share = n / self.n_samples_seen_ if self.momentum is None else self.momentum
        delta = mean - self.mean_
        self.var_ = (1 - share) * self.var_ + share * var
        if self.momentum is None:
            self.var_ += share * (1 - share) * delta**2  # the batches' means differ too
        self.mean_ = self.mean_ + share * delta
        return self


def _moments(X):
    """Mean and biased variance of each column, float64."""
    n = len(X)
    mean, var = np.zeros((2, X.shape[1]))
    if n == 1:
        return X[0].astype(np.float64), var
    F.batch_norm(X, mean, var, training=True, momentum=1.0)
    return mean, var * ((n - 1) / n)
