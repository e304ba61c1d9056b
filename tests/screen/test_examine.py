"""How much of a study is in memory while it is examined, and that this changes nothing of what is found."""

from dataclasses import replace

import pytest

from dicomguard import phantom
from dicomguard.decision import Verdict
from dicomguard.pixels.header import Header
from dicomguard.screen import examine
from tests.screen.conftest import CLEAN, SUSPECT, encode

FRAMES = 20
FRAME_BYTES = 64 * 64 * 4


def header(rows, columns, samples=1, photometric="MONOCHROME2"):
    uids = ("1.2", "1.3", "1.4", "1.5", "1.2.840.10008.1.2.1")
    return Header(*uids, "", {}, True, FRAMES, rows, columns, samples, 8, photometric, "", 0)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        pytest.param(header(64, 64), 16, id="small"),
        pytest.param(header(1024, 1024), 16, id="just-16"),
        pytest.param(header(1024, 1025), 15, id="just-not"),
        pytest.param(header(2048, 2048), 4, id="radiograph"),
        pytest.param(header(2048, 2048, 3, "RGB"), 1, id="colour"),
        pytest.param(header(2048, 2048, 1, "PALETTE COLOR"), 1, id="palette"),
        pytest.param(header(10_000, 10_000), 1, id="over-the-bound-alone"),
        pytest.param(replace(header(0, 0), is_image=False, samples=0), 16, id="no-image"),
    ],
)
def test_frames_are_asked_for_within_64_mib(asked, count):
    assert asked.frames_at_once == count


@pytest.mark.parametrize("frames", [1, 3, 7, 100])
def test_large_frames_are_read_and_scored_few_at_a_time_with_the_same_result(site, monkeypatch, frames):
    dataset = phantom.make(1, opacity=False, rows=64, columns=64)
    codes = [SUSPECT if n == 13 else CLEAN for n in range(FRAMES)]
    dataset.PixelData = b"".join(code.to_bytes(2, "little") + bytes(dataset.PixelData)[2:] for code in codes)
    dataset.NumberOfFrames = FRAMES
    uids = (str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID))
    site.put(encode(dataset), *uids, series=str(dataset.SeriesInstanceUID))
    read, scored, ask, score = [], [], site.worker.frames, site.scorer.score

    def spy_read(*where, start, count):
        read.append(count)
        return ask(*where, start=start, count=count)

    def spy_score(batch, seeds):
        scored.append(len(seeds))
        return score(batch, seeds)

    monkeypatch.setattr(site.worker, "frames", spy_read)
    monkeypatch.setattr(site.scorer, "score", spy_score)
    for module in ("dicomguard.pixels.header", "dicomguard.screen.examine"):
        monkeypatch.setattr(f"{module}.BYTES_AT_ONCE", frames * FRAME_BYTES)
    site.screen()
    (decision,) = site.decisions()
    assert (decision.verdict, decision.instances[0].scores["worst"]["frame"]) == (Verdict.SUSPECT, 13)
    assert decision.instances[0].scores["statistics"] == [9.0 if code == SUSPECT else 1.0 for code in codes]
    assert max(read) == min(16, frames)
    assert max(scored) == min(examine._BATCH_FRAMES, frames)
    assert sum(scored) == FRAMES
