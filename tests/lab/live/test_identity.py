import copy

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicomguard import phantom
from dicomguard.lab.live.identity import Identity
from dicomguard.lab.live.sources import opened
from dicomguard.pixels.sandbox import DecodeWorker


def headers(datasets, folder):
    found = []
    with DecodeWorker() as worker:
        for number, dataset in enumerate(datasets):
            path = folder / f"{number}.dcm"
            dataset.save_as(path, enforce_file_format=True)
            found.append(opened(path, worker).header)
    return found


def test_instances_stay_together_and_refer_to_each_other(tmp_path):
    first, second = phantom.study(1, opacity=True, images=2, rows=64, columns=64)
    reference = Dataset()
    reference.ReferencedSOPClassUID = first.SOPClassUID
    reference.ReferencedSOPInstanceUID = first.SOPInstanceUID
    elsewhere = copy.deepcopy(reference)
    elsewhere.ReferencedSOPInstanceUID = UID("1.2.3")
    second.ReferencedImageSequence = Sequence([reference, elsewhere])
    first.FrameOfReferenceUID = second.FrameOfReferenceUID = UID("1.2.3.4")
    before = copy.deepcopy(first)
    identity = Identity("a", headers([first, second], tmp_path))
    for dataset in (first, second):
        identity.give(dataset)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SOPClassUID == before.SOPClassUID
    assert first.StudyInstanceUID == second.StudyInstanceUID != before.StudyInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != before.SeriesInstanceUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != "1.2.3.4"
    assert len({first.SOPInstanceUID, second.SOPInstanceUID, before.SOPInstanceUID}) == 3
    referred = [item.ReferencedSOPInstanceUID for item in second.ReferencedImageSequence]
    assert referred == [first.SOPInstanceUID, "1.2.3"]


def test_every_kind_of_copy_has_its_own_names_and_the_same_one_the_same(tmp_path):
    (dataset,) = phantom.study(1, opacity=True, rows=64, columns=64)
    known = headers([dataset], tmp_path)
    named = [Identity(kind, known).of(str(dataset.StudyInstanceUID)) for kind in ("a", "a", "b")]
    assert named[0] == named[1] != named[2]
    assert all(UID(uid).is_valid for uid in named)


def test_frames_of_reference_that_everybody_knows_stay(tmp_path):
    (dataset,) = phantom.study(1, opacity=True, rows=64, columns=64)
    talairach = "1.2.840.10008.1.4.1.1"
    dataset.FrameOfReferenceUID = UID(talairach)
    Identity("a", headers([dataset], tmp_path)).give(dataset)
    assert dataset.FrameOfReferenceUID == talairach
