"""Headers of the CT phantoms: valid CT Image instances (PS3.3 A.3), plainly labelled as synthetic."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from dicomguard.phantom.header import file_meta, general, pixel_description, uid_for
from dicomguard.phantom.tomograph import INTERCEPT

# The usual lung window, in Hounsfield units.
WINDOW_CENTRE, WINDOW_WIDTH = -600, 1500


@dataclass(frozen=True, slots=True)
class Geometry:
    """One slice in the series: its number from 1, distance between slices and field of view in mm."""

    instance: int
    increment_mm: float
    field_mm: float
    rows: int
    columns: int


def ct_header(name: str, label: str, geometry: Geometry, *, opacity: bool) -> Dataset:
    """Everything but the pixels. `name` decides the UIDs of the series, `label` is what people read.

    Slices run from head to feet, and z grows towards the head (PS3.3 C.7.6.2.1.1).
    """
    dataset = Dataset()
    general(dataset, name, label, opacity=opacity, instance=geometry.instance)
    pixel_description(dataset, geometry.rows, geometry.columns)
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.PatientOrientation = ["L", "P"]
    dataset.AcquisitionNumber = 1
    dataset.FrameOfReferenceUID = uid_for(f"frame/{name}")
    dataset.PositionReferenceIndicator = ""
    dataset.KVP = "120"
    spacing = geometry.field_mm / geometry.columns
    row_spacing = geometry.field_mm / geometry.rows
    dataset.PixelSpacing = [f"{row_spacing:.6g}", f"{spacing:.6g}"]
    # Thickness and increment as `tomograph` overlaps them.
    dataset.SliceThickness = f"{1.5 * geometry.increment_mm:.6g}"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    z = -(geometry.instance - 1) * geometry.increment_mm
    corner = (-geometry.field_mm / 2 + spacing / 2, -geometry.field_mm / 2 + row_spacing / 2, z)
    dataset.ImagePositionPatient = [f"{value:.8g}" for value in corner]
    dataset.SliceLocation = f"{z:.8g}"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = WINDOW_CENTRE, WINDOW_WIDTH
    dataset.WindowCenterWidthExplanation = "LUNG"
    dataset.file_meta = file_meta(dataset)
    return dataset
