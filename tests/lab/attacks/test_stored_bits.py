from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dicomguard.attacks.margins import from_logits, values
from dicomguard.attacks.rounded import rounded
from dicomguard.errors import DicomguardError
from dicomguard.lab.attacks.deep import DeepNetwork
from dicomguard.lab.attacks.deepfool import DeepFool, deepfool
from dicomguard.lab.attacks.descend import Descent
from dicomguard.lab.attacks.noise_eot import NoiseEOT, Typical, noise_eot, others
from dicomguard.lab.attacks.stored_bits import as_node, on_stored
from dicomguard.pixels.image import Image, StoredMapping
from tests.lab.attacks.toys import blobs, logit
from tests.scoring.small import gray_image, small_seeds


def images(pixels, scale: float, offset: float, low: int, high: int) -> list[Image]:
    found = []
    for one in pixels:
        stored = np.clip(np.rint(one.numpy() / scale + offset), low, high)
        found.append(
            Image(
                pixels=np.clip((stored - offset) * scale, 0, 1).astype(np.float32),
                frame=0,
                bits_stored=12,
                photometric_interpretation="MONOCHROME2" if scale > 0 else "MONOCHROME1",
                voi="window",
                mapping=StoredMapping(scale, offset, low, high),
            )
        )
    return found


MAPPINGS = {
    "8 bits": (1 / 255, 0.0, 0, 255),
    "a window": (1 / 80, -30.5, -1024, 3071),
    "inverted": (-1 / 255, 255.0, 0, 255),
}


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=MAPPINGS)
def test_margins_are_those_of_what_a_file_will_show(mapping) -> None:
    files = images(blobs(6, 3)[0], *mapping)
    clean = torch.from_numpy(np.stack([image.pixels for image in files]))
    margins = from_logits(logit, clean)
    moved = (clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    every = torch.arange(6)
    shown = np.stack([rounded(image, one.numpy()).pixels for image, one in zip(files, moved, strict=True)])
    known = values(margins, torch.from_numpy(shown), every)
    stored = on_stored(margins, files)
    assert torch.allclose(values(stored, moved, every), known, atol=1e-4)
    assert torch.allclose(values(stored, moved[3:5], every[3:5]), known[3:5], atol=1e-4)
    assert not torch.allclose(values(margins, moved, every), known, atol=1e-4)
    assert torch.allclose(values(stored, clean, every), values(margins, clean, every), atol=1e-4)


def test_an_attack_that_knows_outlives_rounding_where_deepfool_does_not() -> None:
    files = images(blobs(32, 3)[0], 1 / 255, 0.0, 0, 255)
    clean = torch.from_numpy(np.stack([image.pixels for image in files]))
    margins = from_logits(logit, clean)
    stored = on_stored(margins, files)
    every = torch.arange(32)
    plain = deepfool(margins, clean)
    knowing = deepfool(stored, clean, DeepFool(kappa=0.01))
    left = values(stored, plain.pixels, every) < 0
    assert plain.flipped.all()
    assert knowing.flipped.all()
    assert (values(stored, knowing.pixels, every) < 0).all()
    assert left.float().mean() < 1


def test_the_noise_check_of_files_is_attacked_through_the_nodes_own_preparation(enrolled) -> None:
    bundle, scorer = enrolled
    deep = DeepNetwork(bundle)
    pictures = [gray_image(n) for n in range(40)]
    evidence, _ = scorer.look(scorer.prepare(pictures), small_seeds(40), scorer.noise.ladder())
    usual = Typical.of([one.seen for one in evidence], len(scorer.noise.levels))
    sources = pictures[:3]
    pixels = torch.from_numpy(np.stack([image.pixels for image in sources]))
    prepare = as_node(scorer.preprocess, sources)
    every = torch.arange(3)
    assert torch.allclose(prepare(pixels, every), scorer.prepare(sources).pixels, atol=1e-6)
    answers = torch.from_numpy(scorer.answer(scorer.prepare(sources).pixels).log_odds)
    wanted = usual.wanted(others(answers))
    settings = NoiseEOT(Descent(0.1, steps=15), 3)
    found = noise_eot(deep.log_odds, wanted, scorer.noise, pixels, range(3), settings, prepare=prepare)
    files = [rounded(image, one.numpy()) for image, one in zip(sources, found.pixels, strict=True)]
    after = torch.from_numpy(scorer.answer(scorer.prepare(files).pixels).log_odds)
    assert found.flipped.any()
    changed = (after.argmax(-1) != answers.argmax(-1)).any(1)
    assert torch.equal(changed, found.flipped), "what the attack saw is what the node answers to the file"
    assert ((found.pixels - pixels).abs() <= 0.1 + 1e-6).all()


def test_gradients_pass_the_rounding() -> None:
    files = images(blobs(2, 3)[0], 1 / 255, 0.0, 0, 255)
    clean = torch.from_numpy(np.stack([image.pixels for image in files])).requires_grad_()
    margins = on_stored(from_logits(logit, clean.detach()), files)
    (gradient,) = torch.autograd.grad(margins(clean, torch.arange(2)).sum(), clean)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_an_image_without_a_way_back_is_refused() -> None:
    image = images(blobs(1, 3)[0], 1 / 255, 0.0, 0, 255)[0]
    with pytest.raises(DicomguardError, match="cannot be forged"):
        on_stored(from_logits(logit, torch.zeros(1, 1, 20, 20)), [replace(image, mapping=None)])
