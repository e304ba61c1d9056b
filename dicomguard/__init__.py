"""dicomguard: a DICOM node that screens studies for adversarial manipulation before they reach a hospital's AI."""

__version__ = "0.1.0"

# Registered under the UUID-derived root (PS3.5 B.2), so that no organisation's root is borrowed.
IMPLEMENTATION_CLASS_UID = "2.25.139207416911274610213207425706117262457"
IMPLEMENTATION_VERSION_NAME = f"DICOMGUARD_{__version__}"
