"""FRS distillation (Du et al., NeurIPS 2021)."""

from frs.distill.adapters import Adapters
from frs.distill.loss import FRSLoss, frs_loss
from frs.distill.scores import feature_richness

__all__ = ["Adapters", "FRSLoss", "feature_richness", "frs_loss"]
