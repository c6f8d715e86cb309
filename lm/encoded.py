"""Features of images, which are encoded once and kept: in memory, and in files if asked.

Of one encoder they are the same for every decoder, whatever its width: student, teacher, reference
and reward share them. An image is known by the SHA-256 of what the encoder sees of it, its pixels,
and of the encoder: so two files with one picture are encoded once, and no other encoder's features
are taken for its own.

Shape letters: N images, S pixels of a side, M soft tokens of an image, E width of the encoder.
"""

import dataclasses
import functools
import hashlib
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import trees, types, weights
from kullback.lm import interleaved, media_rows, pictures, vision

__all__ = ["Images", "fingerprint"]

_NAME = "pooled"  # Of the one tensor in a file.
_COMPUTE = ("query_block", "remat")  # Fields of the encoder that say how it computes, not what.


def fingerprint(config: vision.Config, params: types.Params) -> str:
    """Returns the SHA-256 of an encoder: its sizes, its parameters, and its pooling.

    Args:
      config: of the vision.
      params: of the encoder.
    """
    settings = dataclasses.asdict(config.encoder)
    for name in _COMPUTE:
        del settings[name]
    text = f"{sorted(settings.items())} {config.num_soft} {trees.fingerprint(params)}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """The images that an encoder has seen; its one way to see them is `features`."""

    config: vision.Config
    params: types.Params  # Of the encoder.
    preparation: pictures.Config  # How files become what the encoder sees.
    folder: pathlib.Path | None = None  # Where features are kept; None: in memory alone.
    batch_size: int = 4  # Images >= 1 that are encoded at once. Ours.
    known: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # By their hash.
    hashes: dict[interleaved.Medium, str] = dataclasses.field(default_factory=dict)
    # Threads that write texts ahead ask for the same images; one encodes them.
    lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1 image, got {self.batch_size}")
        if self.preparation.side != self.config.encoder.image_size:
            raise ValueError(
                f"images are prepared with a side of {self.preparation.side} pixels, and the "
                f"encoder takes {self.config.encoder.image_size}: see preprocessor_config.json"
            )

    @property
    def rows(self) -> media_rows.ImageSettings:
        """How rows that name images are read."""
        return media_rows.ImageSettings(self.preparation, self.config.num_soft)

    def cutting(self, crops: bool | None) -> "Images":
        """Returns them with pan and scan or without: long images with crops; None is as it is."""
        if crops is None:
            return self
        preparation = dataclasses.replace(self.preparation, pan_and_scan=crops)
        return dataclasses.replace(self, preparation=preparation)

    def fitted(self, media: Sequence[interleaved.Medium]) -> "Images":
        """Returns itself, as all images have features of one shape."""
        del media
        return self

    def num_bytes(self, num_media: int) -> int:
        """Returns the bytes of the features of so many images."""
        return 4 * num_media * self.config.num_soft * self.config.encoder.embed_dim

    def features(self, media: Sequence[interleaved.Medium]) -> np.ndarray:
        """Returns pooled features of images, float32 [N, M, E]; N may be 0.

        Args:
          media: images and their crops, whose sources are paths; each is read and encoded once.

        Raises:
          ValueError: as `pictures.read` does; for a crop that an image has not; for a kept file
            that is damaged, which may be deleted.
        """
        with self.lock:
            new: dict[str, np.ndarray] = {}  # What the encoder sees, by its hash.
            for medium in dict.fromkeys(media):
                if medium not in self.hashes:
                    new |= self._read(medium)
            self._encode({name: x for name, x in new.items() if not self._load(name)})
        shape = self.config.num_soft, self.config.encoder.embed_dim
        rows = [self.known[self.hashes[medium]] for medium in media]
        return np.stack(rows) if rows else np.zeros((0, *shape), np.float32)

    def _read(self, medium: interleaved.Medium) -> dict[str, np.ndarray]:
        """Reads a file, notes the hashes of all that is seen of it, and returns that by hash."""
        pixels = pictures.read(medium.source).pixels
        seen = pictures.views(pixels, self.preparation)
        if medium.view >= len(seen):
            raise ValueError(
                f"{medium.source} has {len(seen) - 1} crops, and crop {medium.view} is asked for: "
                "was the file changed?"
            )
        by_hash = {}
        for view, x in enumerate(seen):
            digest = hashlib.sha256(f"{self.fingerprint} {x.shape} ".encode() + x.tobytes())
            self.hashes[medium._replace(view=view)] = digest.hexdigest()
            by_hash[digest.hexdigest()] = x
        return by_hash

    def _load(self, name: str) -> bool:
        """Takes features from memory or from a file; returns whether they were there."""
        if name in self.known:
            return True
        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return False
        shape = self.config.num_soft, self.config.encoder.embed_dim
        like = {_NAME: jax.ShapeDtypeStruct(shape, jnp.float32)}
        self.known[name] = np.asarray(weights.import_params(path, like)[_NAME])
        return True

    def _encode(self, images: dict[str, np.ndarray]) -> None:
        """Encodes what is new, in batches of one size, and keeps it."""
        names = list(images)
        for begin in range(0, len(names), self.batch_size):
            chosen = names[begin : begin + self.batch_size]
            filled = [*chosen, *[chosen[-1]] * (self.batch_size - len(chosen))]
            seen = np.stack([images[name] for name in filled])
            pooled = self._program(self.params, pictures.normalized(seen, self.preparation))
            for name, x in zip(chosen, np.asarray(pooled, np.float32), strict=False):
                self.known[name] = x
                if self.folder is not None:
                    weights.export_params(self.folder / f"{name}.safetensors", {_NAME: x})

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that features of pixels follow from: the encoder, and its numbers' scale.

        Models of one fingerprint share the features of images that are prepared alike.
        """
        c = self.preparation
        scale = f"{c.rescale_factor} {c.mean} {c.std}"
        encoder = fingerprint(self.config, self.params)
        return hashlib.sha256(f"{encoder} {scale}".encode()).hexdigest()

    @functools.cached_property
    def _program(self) -> Callable[[types.Params, np.ndarray], jax.Array]:
        return jax.jit(functools.partial(vision.pooled, self.config))
