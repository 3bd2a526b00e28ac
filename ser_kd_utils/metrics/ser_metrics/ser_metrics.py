"""The four scores of speech emotion recognition, as an `evaluate` module.

WA: weighted accuracy, the share of utterances classified correctly. UA: unweighted accuracy, the mean of the recalls of
the classes that occur in the references. macro_f1: mean F1 of the classes. WF1: the same weighted by class size.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score, recall_score


class SerMetrics(evaluate.Metric):
    """predictions and references are class indices; the scores lie in [0, 1]."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def _compute(self, predictions, references):
        present = sorted(set(references))
        return {
            "WA": float(accuracy_score(references, predictions)),
            "UA": float(recall_score(references, predictions, labels=present, average="macro")),
            "macro_f1": float(f1_score(references, predictions, average="macro")),
            "WF1": float(f1_score(references, predictions, average="weighted")),
        }
