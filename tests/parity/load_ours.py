"""Loads by transformers what `write_ours.py` wrote, and compares logits: FOLDER."""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def main(folder):
    """Prints a line a model; the exit status says whether all agree."""
    paths = sorted(folder.glob("*.npz"))
    agree = bool(paths)
    for expected in paths:
        path = expected.with_suffix("")
        model, info = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, attn_implementation="eager"
        )
        arrays = np.load(expected)
        tokens, given = torch.from_numpy(arrays["tokens"]).long(), {}
        if "images" in arrays:
            given["pixel_values"] = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
            # Without them the mask would be causal.
            given["token_type_ids"] = (tokens == model.config.image_token_id).long()
        with torch.no_grad():
            logits = model(tokens, use_cache=False, **given).logits
        difference = float(np.abs(logits.numpy() - arrays["logits"]).max())
        complaints = {key: sorted(value) for key, value in info.items() if value}
        fields = json.loads((path / "generation_config.json").read_text())
        special = model.generation_config.eos_token_id == fields["eos_token_id"]
        agree &= difference < TOLERANCE and not complaints and special
        kind = type(model).__name__
        print(f"{path.name}: {kind}, {difference:.1e} between logits, {complaints or 'complete'}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
