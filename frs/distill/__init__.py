"""FRS distillation (Du et al., NeurIPS 2021)."""

from frs.distill.adapters import Adapters
from frs.distill.loss import FRSLoss, feature_richness, frs_loss

__all__ = ["Adapters", "FRSLoss", "feature_richness", "frs_loss"]
