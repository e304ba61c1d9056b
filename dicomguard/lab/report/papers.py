"""What the two papers print, to stand beside what was measured here. Percent, as they give them."""

from __future__ import annotations

from typing import Final

JOEL: Final = "Joel et al., Cancers 2023, 15, 1548"

RANDOM_NOISE: Final = 0.16
"""Of the presentation range: how far the noise-consistency paper goes with uniform noise as an attack."""
TABLE_1: Final = {"accuracy": (89, 99), "recall": (89, 99), "AUC": (95, 100)}
"""Ranges over its victims."""
MEAN_TPR, MEAN_FPR = 96.1, 3.5
"""Means over Table 2 of the noise-consistency paper."""
BEST_CELL: Final = (99.8, 1.1)
MAHALANOBIS: Final = (92.3, 5.0)

JOEL_TABLE_1: Final = {
    "ResNet-50 detector": (73.3, 100.0),
    "DenseNet-121 detector": (75.8, 100.0),
    "LR": (69.8, 96.9),
    "RF": (58.8, 97.9),
    "SVM": (67.9, 96.2),
}
"""Accuracy at eps .004 and .008, ranges over tasks and attacks."""
JOEL_TABLE_2: Final = {
    "brain_mri": {"baseline": 50.0, "detection": 74.1, "adversarial training": 87.9, "both": 80.0},
    "lung_ct": {"baseline": 50.6, "detection": 75.6, "adversarial training": 75.8, "both": 77.6},
    "breast_us": {"baseline": 50.2, "detection": 76.4, "adversarial training": 66.6, "both": 70.4},
}
"""Classification accuracy under BIM .004: MRI, CT and mammography there; the data sets that stand in for them here."""
