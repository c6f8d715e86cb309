"""Clips of sound as features, each file read once and kept in memory (lm/audio.py, lm/hearing.py).

They are nothing but log-mel, which no parameter has a part in: models whose encoders have as many
bins share them. Shape letters: n clips, A frames, M mel bins.
"""

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from kullback.lm import audio, hearing, interleaved, media_rows

__all__ = ["Sounds"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sounds:
    """The clips that a model has heard; its one way to hear them is `features`."""

    config: hearing.Config  # Of the encoder.
    # Soft tokens that there is room for in the features of a clip; None: as many as it may have.
    num_tokens: int | None = None
    known: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # By the file's path.
    # Threads that write texts ahead ask for the same clips; one reads them.
    lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def rows(self) -> media_rows.SoundSettings:
        """How rows that name clips are read."""
        return media_rows.SoundSettings(self.config.most_tokens)

    @property
    def room(self) -> int:
        """Soft tokens that there is room for in the features of a clip."""
        return self.num_tokens or self.config.most_tokens

    def features(self, media: Sequence[interleaved.Medium]) -> hearing.Clips:
        """Returns features of clips, [n, A, M]; n may be 0.

        Args:
          media: clips, whose sources are paths.

        Raises:
          ValueError: as `audio.read_wav` does; for a file that is not as long as its clip.
        """
        with self.lock:
            clips = [self._read(medium) for medium in media]
        return hearing.stacked(clips, self.room, self.config.bins)

    def fitted(self, media: Sequence[interleaved.Medium]) -> "Sounds":
        """Returns the same with room for the longest of some clips, a power of two of tokens."""
        longest = max((medium.tokens for medium in media), default=1)
        room = min(1 << (longest - 1).bit_length(), self.config.most_tokens)
        return dataclasses.replace(self, num_tokens=room)

    def num_bytes(self, num_media: int) -> int:
        """Returns the bytes of the features of so many clips, with the room that they have."""
        return 4 * num_media * self.room * audio.FRAMES_PER_TOKEN * self.config.bins

    def _read(self, medium: interleaved.Medium) -> np.ndarray:
        """Returns the features of a clip, float32 [frames, M]."""
        name = str(medium.source)
        if name not in self.known:
            sound = audio.read_wav(name)
            self.known[name] = audio.log_mel(sound, audio.Config(bins=self.config.bins))
        features = self.known[name]
        if -(-len(features) // audio.FRAMES_PER_TOKEN) != medium.tokens:
            raise ValueError(
                f"{name} has {len(features)} frames, and {medium.tokens} soft tokens of it are in "
                "a row: was the file changed?"
            )
        return features
