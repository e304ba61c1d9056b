"""Configuration: one YAML file, read once into frozen typed sections, then handed out in parts."""

from dicomguard.config.load import load, parse
from dicomguard.config.sections import (
    BundleSection,
    Config,
    DeliverySection,
    DestinationSection,
    DriftSection,
    FalseHoldBudgetSection,
    LimitsSection,
    NodeSection,
    PeerSection,
    PolicySection,
    StudySection,
)

__all__ = [
    "BundleSection",
    "Config",
    "DeliverySection",
    "DestinationSection",
    "DriftSection",
    "FalseHoldBudgetSection",
    "LimitsSection",
    "NodeSection",
    "PeerSection",
    "PolicySection",
    "StudySection",
    "load",
    "parse",
]
