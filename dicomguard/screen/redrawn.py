"""Noise drawn again by somebody who has seeds and no site key.

The seed of a frame is HMAC-SHA256, keyed by the site, over what identifies the frame (`scoring.noise.seed`). Disclosing
some of them reveals neither the key nor the seed of any other frame: that is what makes HMAC a pseudorandom function.
Whoever has a seed can foresee the noise for these very bytes under this very model, which have been decided upon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Final, cast

from dicomguard.decision import InstanceDecision, Score
from dicomguard.scoring import noise
from dicomguard.scoring.scorer import Scorer
from dicomguard.screen.examine import SeedMissingError
from dicomguard.screen.protected import Protected

# No secret: the key of an examiner whose every seed is replaced by a disclosed one.
NO_KEY: Final = bytes(32)
# What noise is drawn for; each has a seed of its own.
_PURPOSES: Final = (noise.NOISE_CHECK, noise.GUARD)


@dataclass(frozen=True, slots=True)
class FrameSeed:
    """The seed of one frame, in hexadecimal, and what it stands for. Raises ValueError where it is no seed."""

    sop_instance_uid: str
    frame: int
    sha256: str
    fingerprint: str
    purpose: str
    seed: str

    def __post_init__(self) -> None:
        if len(bytes.fromhex(self.seed)) != len(NO_KEY):
            raise ValueError("a seed is 32 bytes in hexadecimal")

    def to_json(self) -> dict[str, Any]:
        """A plain mapping for JSON."""
        return asdict(self)


def frame_seeds(
    noise_key: bytes, instances: Iterable[InstanceDecision], count_frames: Callable[[InstanceDecision], int]
) -> Iterator[FrameSeed]:
    """The seeds of the noise for these instances: of each frame that a model was to look at, by purpose.

    `count_frames` is asked where no scores tell how many there are: the model may have failed on any of them.
    """
    for instance in instances:
        if instance.fingerprint is None:
            continue
        frames = count_frames(instance) if instance.scores is None else int(instance.scores["frames"])
        for frame in range(frames):
            for purpose in _PURPOSES:
                what = (str(instance.sop_instance_uid), frame, instance.sha256, instance.fingerprint, purpose)
                yield FrameSeed(*what, seed=noise.seed(noise_key, *what).hex())


def with_seeds(models: Iterable[Protected], seeds: Iterable[FrameSeed]) -> list[Protected]:
    """The models for an examiner that was given `NO_KEY`: they draw their noise from `seeds`."""
    disclosed = {
        noise.seed(NO_KEY, s.sop_instance_uid, s.frame, s.sha256, s.fingerprint, s.purpose): bytes.fromhex(s.seed)
        for s in seeds
    }
    # What follows the scorer's interface without being one: the examiner cannot tell.
    return [replace(m, scorer=cast("Scorer", _Redrawing(m.scorer, disclosed))) for m in models]


class _Redrawing:
    """A scorer whose seeds are exchanged on the way in. A frame whose seed was not disclosed cannot be scored."""

    def __init__(self, scorer: Scorer, disclosed: Mapping[bytes, bytes]) -> None:
        self._scorer = scorer
        self._disclosed = disclosed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def score(self, batch: Any, seeds: Sequence[Any]) -> list[Score]:
        """As `Scorer.score`. Raises SeedMissingError for a frame whose seed is not among the disclosed ones."""
        return self._scorer.score(batch, [self._exchanged(seed) for seed in seeds])

    def _exchanged(self, seed: Any) -> Any:
        """One seed, or a value with one in each of its fields."""
        if is_dataclass(seed) and not isinstance(seed, type):
            return replace(seed, **{each.name: self._exchanged(getattr(seed, each.name)) for each in fields(seed)})
        if seed not in self._disclosed:
            raise SeedMissingError("The noise of a frame cannot be drawn again: its seed was not disclosed.")
        return self._disclosed[seed]
