"""The papers' own data sets in the layouts in which they are handed out, or a word on where to get them.

Nothing is downloaded here: most of them want a registration, and all of them a licence that a person reads.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.listing import Entry, Listing
from dicomguard.lab.data.pictures import NO_PATIENTS, entry, files, read_table
from dicomguard.lab.data.tree import by_series, tree
from dicomguard.lab.datasets import Split
from dicomguard.lab.duplicates import Likeness
from dicomguard.lab.instances import computed_radiograph, magnetic_resonance, ophthalmic_photograph


@dataclass(frozen=True, slots=True)
class Paper:
    """One published set: where to get it, what its folder must hold, and how it is read."""

    title: str
    where: str
    layout: str
    marks: tuple[str, ...]
    labels: tuple[str, ...]
    read: Callable[[Path], Listing]


def kermany(root: Path) -> Listing:
    """chest_xray/train|val|test/NORMAL|PNEUMONIA; the patient is in the file name.

    The official validation folder has 16 pictures: it is divided anew together with the training one. Numbers of
    `person` files begin again in the test folder, so that one name may mean two children; such pictures of the
    training side are left out, to be sure.
    """
    entries = [
        entry(
            path,
            label.lower(),
            kermany_patient(path.stem),
            key=f"{part}/{path.name}",
            planes=1,
            root=root,
            pinned=Split.TEST if part == "test" else None,
        )
        for part in ("train", "val", "test")
        for label in ("NORMAL", "PNEUMONIA")
        for path in files(root / part / label)
    ]
    return Listing(
        name="kermany",
        labels=("normal", "pneumonia"),
        entries=entries,
        source="Kermany, Zhang, Goldbaum, Mendeley Data rscbjbr9sj (doi 10.17632/rscbjbr9sj), Cell 2018;172:1122; "
        "CC BY 4.0. Official test split; training and validation folders divided anew by patient.",
        maker=computed_radiograph,
        bits=12,
        limits=("The official test split is shifted against the training split: accuracy drops by about ten points.",),
    )


def kermany_patient(stem: str) -> str:
    """`person1_bacteria_2` -> person1; `IM-0115-0001` and `NORMAL2-IM-0383-0001-0002` -> the part up to the number."""
    found = re.match(r"(person\d+)_|((?:NORMAL2-)?IM-\d+)", stem)
    return (found[1] or found[2]) if found else stem


def kaggle_brain_mri(root: Path) -> Listing:
    """Training|Testing/<class>; classes named notumor, no_tumor or no against all others."""
    entries = [
        entry(
            path,
            "no tumour" if folder.name.lower().replace("_", "") in {"notumor", "no"} else "tumour",
            f"{part}/{folder.name}/{path.stem}",
            key=f"{part}/{folder.name}/{path.name}",
            planes=1,
            root=root,
            pinned=Split.TEST if part == "Testing" else None,
        )
        for part in ("Training", "Testing")
        for folder in sorted((root / part).iterdir())
        if folder.is_dir()
        for path in files(folder)
    ]
    return Listing(
        name="kaggle_brain_mri",
        labels=("no tumour", "tumour"),
        entries=entries,
        source="Kaggle 'Brain Tumor MRI Dataset' (Figshare: Cheng 2017, doi 10.6084/m9.figshare.1512427; SARTAJ; "
        "Br35H). Official test folder; training folder divided anew.",
        maker=magnetic_resonance,
        bits=12,
        limits=(
            "Slices without tumour come from other sites than those with one: a model may learn the source.",
            NO_PATIENTS,
        ),
        rule=Likeness(),
        joins=True,
    )


_RFMID_PARTS = (
    ("Training_Set/Training", "Training_Set/RFMiD_Training_Labels.csv", None),
    ("Evaluation_Set/Validation", "Evaluation_Set/RFMiD_Validation_Labels.csv", None),
    ("Test_Set/Test", "Test_Set/RFMiD_Testing_Labels.csv", Split.TEST),
)


def rfmid(root: Path) -> Listing:
    """Three folders of `<ID>.png` with a table beside each; Disease_Risk tells healthy (0) from not."""
    entries: list[Entry] = []
    for folder, table, pinned in _RFMID_PARTS:
        for row in read_table(root / table, ("ID", "Disease_Risk")):
            path = root / folder / f"{row['ID']}.png"
            label = "disease" if row["Disease_Risk"].strip() == "1" else "normal"
            key = f"{folder}/{path.name}"
            entries.append(entry(path, label, key, key=key, planes=3, root=root, pinned=pinned))
    return Listing(
        name="rfmid",
        labels=("normal", "disease"),
        entries=entries,
        source="Pachade et al., Retinal Fundus Multi-disease Image Dataset (RFMiD), Data 2021;6:14 (doi "
        "10.3390/data6020014); CC BY 4.0. Official test set; training and evaluation sets divided anew.",
        maker=ophthalmic_photograph,
        bits=8,
        planes=3,
        limits=(NO_PATIENTS,),
        rule=Likeness(bits=2, together=0.985, alone=0.995),
    )


def cbis_ddsm(root: Path) -> Listing:
    """Full mammograms by series: malignant where one of their lesions is, by the four case descriptions.

    The tables name each series in `image file path`, whatever folders the download made of it. Official test cases are
    test pictures.
    """
    labels: dict[str, str] = {}
    tested: set[str] = set()
    for path in sorted(root.rglob("*_case_description_*_set.csv")):
        for row in read_table(path, ("pathology", "image file path")):
            steps = row["image file path"].strip().split("/")
            if len(steps) < 3:
                raise DicomguardError(
                    f"{path}: {row['image file path']!r} names no series.", advice="Restore the table."
                )
            series = steps[2]
            is_malignant = row["pathology"].strip() == "MALIGNANT" or labels.get(series) == "malignant"
            labels[series] = "malignant" if is_malignant else "benign"
            if "test" in path.name:
                tested.add(series)
    found = tree(
        root,
        by_series(labels),
        # Every view has a PatientID of its own, such as Mass-Training_P_00001_LEFT_CC: the patient is P_00001.
        group=lambda _path, header: _patient(str(header.get("PatientID", ""))),
        pinned=lambda _path, header: Split.TEST if str(header.get("SeriesInstanceUID")) in tested else None,
    )
    return Listing(
        name="cbis_ddsm",
        labels=("benign", "malignant"),
        entries=found.entries,
        source="Lee et al., Curated Breast Imaging Subset of DDSM, Scientific Data 2017;4:170177 (doi "
        "10.7937/K9/TCIA.2016.7O02S9CY); CC BY 3.0. Official test set; training set divided anew by patient.",
        maker=None,
        bits=found.bits,
        limits=("Digitised film: scanners differ between the classes' sources.",),
        absent=found.absent,
    )


def _patient(name: str) -> str:
    found = re.search(r"P_\d+", name)
    return found[0] if found else name


def lidc_idri(root: Path) -> Listing:
    """CT slices with a rated nodule: malignant where the median of the readers' ratings is above 3, benign below.

    Ratings go from 1 to 5; slices at exactly 3 are left out. Of each patient one slice is taken outside of training.
    """
    rated: dict[str, list[int]] = defaultdict(list)
    for path in sorted(root.rglob("*.xml")):
        for uid, rating in _rated(path):
            rated[uid].append(rating)
    labels = {
        uid: "malignant" if median(ratings) > 3 else "benign" for uid, ratings in rated.items() if median(ratings) != 3
    }
    found = tree(root, lambda _path, header: labels.get(str(header.get("SOPInstanceUID", ""))))
    return Listing(
        name="lidc_idri",
        labels=("benign", "malignant"),
        entries=found.entries,
        source="Armato et al., Lung Image Database Consortium, Medical Physics 2011;38:915 (doi "
        "10.7937/K9/TCIA.2015.LO9QL9SX); CC BY 3.0. Divided by patient.",
        maker=None,
        bits=found.bits,
        limits=(
            "The answer is what readers thought of a nodule, not a diagnosis; whole slices, not crops of lesions.",
        ),
        absent=found.absent,
    )


def _rated(path: Path) -> Iterator[tuple[str, int]]:
    """(SOP Instance UID, malignancy 1 to 5) for each contour of a rated nodule of one LIDC annotation file."""
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DicomguardError(f"{path} declares entities, which no LIDC annotation does.", advice="Download it again.")
    try:
        top = ET.fromstring(data)  # noqa: S314 - without entities there is nothing to expand
    except ET.ParseError as error:
        raise DicomguardError(f"{path} is no XML: {error}.", advice="Download it again.") from error
    for nodule in _children(top, "unblindedReadNodule"):
        ratings = [one.text for one in _children(nodule, "malignancy")]
        if not ratings or not (ratings[0] or "").strip().isdigit() or not 1 <= int(ratings[0] or 0) <= 5:
            continue
        for contour in _children(nodule, "roi"):
            for uid in _children(contour, "imageSOP_UID"):
                if uid.text:
                    yield uid.text.strip(), int(ratings[0] or 0)


def _children(top: ET.Element, name: str) -> Iterable[ET.Element]:
    """Elements of that local name anywhere below; the files come in several namespaces."""
    return (one for one in top.iter() if one.tag.rpartition("}")[2] == name)


PAPERS: Mapping[str, Paper] = {
    "kermany": Paper(
        "Kermany chest X-ray (the noise-consistency paper)",
        "https://data.mendeley.com/datasets/rscbjbr9sj (ChestXRay2017.zip, CC BY 4.0)",
        "train/NORMAL, train/PNEUMONIA, test/NORMAL, test/PNEUMONIA (and val/)",
        ("train/NORMAL", "test/PNEUMONIA"),
        ("normal", "pneumonia"),
        kermany,
    ),
    "rfmid": Paper(
        "RFMiD retinal fundus (the noise-consistency paper)",
        "https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid (CC BY 4.0)",
        "Training_Set/, Evaluation_Set/ and Test_Set/, each with its pictures and RFMiD_*_Labels.csv",
        ("Training_Set/RFMiD_Training_Labels.csv", "Test_Set/RFMiD_Testing_Labels.csv"),
        ("normal", "disease"),
        rfmid,
    ),
    "kaggle_brain_mri": Paper(
        "Brain Tumor MRI Dataset (both papers)",
        "https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset (CC0; a Kaggle account is needed)",
        "Training/<class> and Testing/<class>",
        ("Training", "Testing"),
        ("no tumour", "tumour"),
        kaggle_brain_mri,
    ),
    "lidc_idri": Paper(
        "LIDC-IDRI lung CT (Joel et al. 2023)",
        "https://www.cancerimagingarchive.net/collection/lidc-idri (125 GB, CC BY 3.0; the annotations are XML files)",
        "LIDC-IDRI-0001/... with DICOM files, and the annotations' XML files anywhere below",
        ("LIDC-IDRI-*", "**/*.xml"),
        ("benign", "malignant"),
        lidc_idri,
    ),
    "cbis_ddsm": Paper(
        "CBIS-DDSM mammograms (Joel et al. 2023)",
        "https://www.cancerimagingarchive.net/collection/cbis-ddsm (164 GB, CC BY 3.0, with four case descriptions)",
        "the DICOM files of the full mammograms, and mass_ and calc_case_description_{train,test}_set.csv",
        ("**/*_case_description_*_set.csv",),
        ("benign", "malignant"),
        cbis_ddsm,
    ),
}


def listing(name: str, data: Path) -> Listing:
    """A paper's set under `data`, or in a folder of the set's name in it.

    Raises:
        DicomguardError: it is not there; the advice says where to get it.

    """
    paper = PAPERS[name]
    root = place_of(name, data)
    if root is None:
        raise DicomguardError(
            f"{paper.title} is not in {data}.",
            advice=f"Get it from {paper.where}, and point --data at the folder that holds {paper.layout}.",
        )
    found = paper.read(root)
    if not found.entries:
        raise DicomguardError(
            f"{paper.title}: none of the pictures that its tables name is under {root}.",
            advice=f"It should hold {paper.layout}.",
        )
    return found


def place_of(name: str, data: Path) -> Path | None:
    """The folder that has the layout of that set: `data`, or one in it with the set's name; else None."""
    others = {"kermany": ("chest_xray",), "lidc_idri": ("LIDC-IDRI",), "cbis_ddsm": ("CBIS-DDSM",)}.get(name, ())
    for root in (data, data / name, *(data / other for other in others)):
        if root.is_dir() and all(any(root.glob(mark)) for mark in PAPERS[name].marks):
            return root
    return None
