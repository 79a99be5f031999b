"""How good a detector is, and how sure that is."""

from frs.evaluation.bootstrap import Gain, paired_bootstrap, verdict
from frs.evaluation.coco import Accuracy, Row, evaluate, predict_dataset

__all__ = ["Accuracy", "Gain", "Row", "evaluate", "paired_bootstrap", "predict_dataset", "verdict"]
