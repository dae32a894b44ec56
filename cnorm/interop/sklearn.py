"""Batch normalization and standardization as scikit-learn transformers."""

import numpy as np

import cnorm.functional as F

from ._missing import needs

with needs("sklearn"):
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils import check_array
    from sklearn.utils.validation import check_is_fitted, validate_data

from .._moments import Moments

__all__ = ["BatchNorm", "StandardScaler"]

FLOATS = [np.float64, np.float32, np.float16]


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
        Features of the training data.
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
        return validate_data(self, X, dtype=FLOATS, reset=reset)

    def _update(self, X, first):
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, but got {self.eps}")
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be None or from 0 to 1, but got {self.momentum}")
        X = self._checked(X, reset=first)
        moments = F.moments(X, axis=0)
        n, mean, var = len(X), moments.mean, moments.var()
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


class StandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """``(X - mean_) / scale_``: `sklearn.preprocessing.StandardScaler`, with statistics that merge.

    Attributes and results are scikit-learn's, within a few eps; statistics are taken in one pass,
    in double, by `cnorm.functional.moments`. NaN is ignored in `fit` and kept in `transform`.
    Beside it, scalers that were fitted apart merge, and data may have more than two axes.
    `sample_weight` and sparse data are not supported: TypeError.

    Parameters
    ----------
    copy : bool, default=True
        False: results are written into `X` where it is a float array.
    with_mean : bool, default=True
        Whether to subtract the mean.
    with_std : bool, default=True
        Whether to divide by the standard deviation.
    channel_axis : int or None, default=None
        The axis of the features, of data of two or more axes; every other axis is one of samples.
        None: data are of shape (n_samples, n_features), as in scikit-learn.

    Attributes
    ----------
    mean_, var_, scale_ : ndarray of shape (n_features,), or None
        Of the training data, float64; the variance is the biased one. `scale_` is its root, and 1
        where scikit-learn takes a feature for constant. None as in scikit-learn: the variance and
        the scale without `with_std`, the mean where `with_mean` is False too.
    n_samples_seen_ : int, or ndarray of shape (n_features,)
        Numbers that are not NaN: an array where features differ in that. With `channel_axis` all
        numbers of a feature count, of each sample as many as there are positions.
    moments_ : cnorm.Moments
        All that is known of the training data.
    n_features_in_ : int
        Features of the training data.
    feature_names_in_ : ndarray of shape (n_features,)
        Where `X` has feature names.

    Examples
    --------
    >>> import numpy as np
    >>> from cnorm.interop.sklearn import StandardScaler
    >>> X = np.array([[1.0, 10.0], [3.0, np.nan], [5.0, 30.0]])
    >>> scaler = StandardScaler().fit(X)
    >>> scaler.mean_, scaler.n_samples_seen_
    (array([ 3., 20.]), array([3, 2]))
    >>> scaler.transform([[3.0, 40.0]])
    array([[0., 2.]])

    Scalers of two parts of the data, fitted wherever the parts are:

    >>> parts = [StandardScaler().fit(part) for part in (X[:2], X[2:])]
    >>> parts[0].merge(parts[1]).mean_
    array([ 3., 20.])
    """

    def __init__(self, *, copy=True, with_mean=True, with_std=True, channel_axis=None):
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std
        self.channel_axis = channel_axis

    def fit(self, X, y=None, **unsupported):
        """Take the statistics of `X`, forgetting all others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            With `channel_axis` of any shape.
        y : ignored

        Returns
        -------
        StandardScaler
            Itself.
        """
        return self._update(X, unsupported, first=True)

    def partial_fit(self, X, y=None, **unsupported):
        """Add a batch to the statistics.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            With `channel_axis` of any shape with as many axes as the first batch.
        y : ignored

        Returns
        -------
        StandardScaler
            Itself.
        """
        return self._update(X, unsupported, first=not hasattr(self, "moments_"))

    def merge(self, *others):
        """Add the statistics of other scalers: those of all data together.

        Parameters
        ----------
        *others : StandardScaler
            Fitted, on data with the same features. They stay as they are.

        Returns
        -------
        StandardScaler
            Itself. Where the call raises, nothing has changed.

        Raises
        ------
        ValueError
            Other features, axes, or parameters `channel_axis`.
        """
        check_is_fitted(self)
        for other in others:
            if not isinstance(other, StandardScaler):
                raise TypeError(f"merge takes StandardScalers, but got {type(other).__name__}")
            check_is_fitted(other)
            if other.n_features_in_ != self.n_features_in_:
                raise ValueError(
                    f"scalers of {self.n_features_in_} and {other.n_features_in_} features do not "
                    "merge"
                )
            names = getattr(self, "feature_names_in_", None)
            others_names = getattr(other, "feature_names_in_", None)
            if names is not None and others_names is not None and list(names) != list(others_names):
                raise ValueError("scalers of features with other names do not merge")
        self._take(Moments.merge([self.moments_, *(other.moments_ for other in others)]))
        return self

    def transform(self, X, copy=None):
        """Standardize.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        copy : bool, optional
            Instead of the parameter `copy`.

        Returns
        -------
        ndarray of the shape of `X`
            float32 and float16 stay so, everything else becomes float64.
        """
        return self._applied(X, copy, inverse=False)

    def inverse_transform(self, X, copy=None):
        """Give standardized features their mean and deviation back.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        copy : bool, optional
            Instead of the parameter `copy`.

        Returns
        -------
        ndarray of the shape of `X`
        """
        return self._applied(X, copy, inverse=True)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = self.channel_axis is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags

    def _update(self, X, unsupported, first):
        for name in unsupported:
            raise TypeError(
                f"cnorm's StandardScaler does not support {name}: every sample counts once; "
                "sklearn.preprocessing.StandardScaler has sample_weight"
            )
        # Integers are read as they are. Infinity shows in the moments: X is read once.
        X = self._checked(X, reset=first, dtype="numeric", ensure_all_finite=False)
        if X.dtype.kind == "f" and X.dtype.type not in FLOATS:
            X = X.astype(np.float64)
        moments = F.moments(X, self._sample_axes(X), nan_policy="omit")
        if (np.isnan(moments.mean) & (moments.count > 0)).any():
            raise ValueError(
                f"Input X contains infinity or a value too large for {X.dtype!r}: its mean is NaN"
            )
        self._take(moments if first else self.moments_ + moments)
        return self

    def _take(self, moments):
        """Set all attributes from moments."""
        count, mean, var = moments.count, moments.mean, moments.var()
        eps = np.finfo(np.float64).eps
        # Where scikit-learn takes a feature for constant: within the errors of its own sums.
        constant = var <= count * eps * var + (count * mean * eps) ** 2
        has_mean = self.with_mean or self.with_std
        counts = count.astype(np.int64)
        self.moments_ = moments
        self.n_samples_seen_ = counts if len(set(counts)) > 1 else counts[0]
        self.mean_ = mean if has_mean else None
        self.var_ = var if self.with_std else None
        self.scale_ = np.where(constant, 1.0, np.sqrt(var)) if self.with_std else None

    def _applied(self, X, copy, inverse):
        check_is_fitted(self)
        copy = self.copy if copy is None else copy
        X = self._checked(X, False, FLOATS, "allow-nan", force_writeable=not copy)
        zeros, ones = np.zeros(self.n_features_in_), np.ones(self.n_features_in_)
        mean = self.mean_ if self.with_mean else zeros
        var = np.square(self.scale_) if self.with_std else ones
        moments = Moments.from_stats(2, mean, var, self._sample_axes(X))
        return (moments.inverse if inverse else moments.standardize)(X, out=None if copy else X)

    def _checked(self, X, reset, dtype, ensure_all_finite, force_writeable=False):
        options = {
            "dtype": dtype,
            "ensure_all_finite": ensure_all_finite,
            "force_writeable": force_writeable,
        }
        if self.channel_axis is None:
            return validate_data(self, X, reset=reset, **options)
        X = check_array(X, allow_nd=True, estimator=self, input_name="X", **options)
        if not -X.ndim <= self.channel_axis < X.ndim:
            raise ValueError(
                f"channel_axis must be from {-X.ndim} to {X.ndim - 1} for X of shape {X.shape}, "
                f"but got {self.channel_axis}"
            )
        features = X.shape[self.channel_axis]
        if reset:
            self.n_features_in_ = features
        elif features != self.n_features_in_:
            raise ValueError(
                f"X has {features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input, at axis {self.channel_axis}"
            )
        return X

    def _sample_axes(self, X):
        channel = (1 if self.channel_axis is None else self.channel_axis) % X.ndim
        return tuple(axis for axis in range(X.ndim) if axis != channel)
