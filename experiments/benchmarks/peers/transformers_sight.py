"""Images a second through transformers' SigLIP encoder: SECONDS, fields of its configuration.

The rates are as torch is, and keeping freed memory, which no user gets by default.
"""

import json
import os
import sys

import torch
from rate import both_ways
from transformers import SiglipVisionConfig, SiglipVisionModel


def encoder(shape):
    """Makes a function that encodes an image and returns 1."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**shape)).float().eval()
    image = torch.rand(1, 3, shape["image_size"], shape["image_size"]) * 2 - 1

    def work():
        with torch.inference_mode():
            return len(model(pixel_values=image).last_hidden_state.numpy())

    return work


def main():
    """Prints the rates."""
    rate, kept, _ = both_ways(encoder(json.loads(sys.argv[2])), float(sys.argv[1]))
    print(json.dumps({"images": rate, "kept_images": kept}))


if __name__ == "__main__":
    main()
