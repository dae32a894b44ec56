"""cnorm's BatchNorm as a step of a scikit-learn pipeline, and fitted batch by batch."""

from sklearn.datasets import load_wine
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from cnorm.interop.sklearn import BatchNorm

X, y = load_wine(return_X_y=True)
classifier = SGDClassifier(random_state=0)
print(f"raw:        {cross_val_score(classifier, X, y).mean():.2f}")
print(f"normalized: {cross_val_score(make_pipeline(BatchNorm(), classifier), X, y).mean():.2f}")

norm = BatchNorm()
for batch in (X[:50], X[50:120], X[120:]):
    norm.partial_fit(batch)
assert abs(norm.mean_ - X.mean(0)).max() < 1e-10  # as if fitted on all of them
