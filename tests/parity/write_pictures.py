"""Writes small image files and what transformers makes of them: FOLDER.

pictures.npz: the bytes of files of several formats, uint8 [n] each under "file/NAME"; "pixels/NAME"
is what Gemma3ImageProcessor with Pillow makes of each, pan and scan included, float32
[N, 3, S, S], S = 12. The file's loader is transformers' too. "boxes": int32 [n, 11], width, height,
number of crops, then the sizes (width, height) of up to four crops, of random images.
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

SIDE = 12
PAN_AND_SCAN = {
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def image(generator, width, height, mode="RGB"):
    """Returns an image of a gradient with noise, so that a shift of half a pixel shows."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    slope = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 55, height)[:, None, None]
    noise = generator.integers(0, 90, (height, width, bands))
    pixels = np.clip(slope + noise - 45, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode)


def encoded(picture, kind, **options):
    """Returns the bytes of an image's file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def files(generator):
    """Returns the files by name."""
    upside = Image.Exif()
    upside[0x0112] = 6  # To be turned by 90 degrees.
    photograph = image(generator, 30, 18)
    return {
        "one.png": encoded(image(generator, 1, 1), "PNG"),
        "thin.png": encoded(image(generator, 400, 3), "PNG"),
        "tall.png": encoded(image(generator, 17, 60), "PNG"),
        "up.png": encoded(image(generator, 5, 7), "PNG"),
        "grey.png": encoded(image(generator, 31, 20, "L"), "PNG"),
        "alpha.png": encoded(image(generator, 20, 20, "RGBA"), "PNG"),
        "palette.png": encoded(image(generator, 24, 24).quantize(16), "PNG"),
        "turned.jpg": encoded(photograph, "JPEG", quality=90, exif=upside),
        "photo.webp": encoded(photograph, "WEBP", lossless=True),
    }


def main(folder):
    """Writes the fixture."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3}
    settings["image_std"] = [0.5] * 3
    processor = Gemma3ImageProcessorPil(
        **settings, **PAN_AND_SCAN, do_pan_and_scan=True, pan_and_scan_min_crop_size=8
    )
    arrays = {}
    for name, data in files(generator).items():
        path = folder / name
        path.write_bytes(data)
        opened = load_image(str(path))
        path.unlink()
        arrays[f"file/{name}"] = np.frombuffer(data, np.uint8)
        arrays[f"pixels/{name}"] = np.stack(processor(opened)["pixel_values"]).astype(np.float32)
    boxes = []
    for width, height in generator.integers(1, 1600, (200, 2)).tolist():
        blank = np.broadcast_to(np.uint8(0), (3, height, width))
        crops = processor.pan_and_scan(blank, pan_and_scan_min_crop_size=256, **PAN_AND_SCAN)
        sizes = [size for crop in crops for size in (crop.shape[2], crop.shape[1])]
        boxes.append([width, height, len(crops), *sizes, *[0] * (8 - len(sizes))])
    arrays["boxes"] = np.asarray(boxes, np.int32)
    np.savez_compressed(folder / "pictures.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
