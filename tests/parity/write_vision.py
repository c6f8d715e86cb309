"""Writes a small Gemma 3 that sees, and what transformers makes of it: FOLDER.

vision.json and vision.safetensors are what `save_pretrained` writes; vision.npz has

- images uint8 [2, S, S, 3], encoded float32 [2, P, E], soft float32 [2, M, D];
- tokens int32 [B, T] with 2, 1 and 0 images, padded on the left to one length, lengths int32 [B];
- logits and narrow_logits float32 [B, T, V]: with the window of the file, and one shorter than an
  image; those of padding are meaningless;
- greedy int32 [B, n], the continuation, and gaps float32 [B, n] between the best two logits.
"""

import pathlib
import shutil
import sys
import tempfile

import numpy as np
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

BEGIN, END, SOFT, NUM_SOFT = 60, 61, 62, 4
WINDOW, NARROW = 6, 3
CONTINUED = 6
WRITTEN = {"config.json": "vision.json", "model.safetensors": "vision.safetensors"}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "head_dim": 8,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 11,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "full_attention": {"rope_theta": 50_000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
    },
}
VISION = {
    "hidden_size": 18,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 7,
    "vision_use_head": False,
}


def config(window):
    """Returns the configuration with a window of local layers."""
    return Gemma3Config(
        text_config={**TEXT, "sliding_window": window},
        vision_config=VISION,
        mm_tokens_per_image=NUM_SOFT,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        image_token_index=SOFT,
        attn_implementation="eager",
    )


def randomise(model):
    """Draws all parameters, scales and biases too: as they begin they would hide one another."""
    torch.manual_seed(0)
    for path, weight in model.named_parameters():
        drawn = torch.randn_like(weight)
        if path.endswith("mm_input_projection_weight"):
            drawn *= weight.shape[0] ** -0.5
        elif weight.ndim == 4:
            drawn *= weight[0].numel() ** -0.5
        elif weight.ndim == 2:
            drawn *= weight.shape[1] ** -0.5
        else:
            drawn *= 0.3
        is_layer_norm = "vision_tower" in path and "norm" in path and path.endswith("weight")
        weight.copy_(drawn + is_layer_norm)


def rows(random):
    """Returns three prompts with 2, 1 and 0 images, as lists of ids."""

    def text(length):
        return random.integers(3, BEGIN, length).tolist()

    image = [BEGIN, *[SOFT] * NUM_SOFT, END]
    return [
        [2, *text(2), *image, *text(1), *image, *text(3)],
        [2, *image, *text(5)],
        [2, *text(9)],
    ]


def main(folder):
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    model = Gemma3ForConditionalGeneration(config(WINDOW)).eval()
    narrow = Gemma3ForConditionalGeneration(config(NARROW)).eval()
    images = random.integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    prompts = rows(random)
    length = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    shown = torch.cat([pixels, pixels[1:]])  # Row 0 has both, row 1 the second.

    def logits(model, tokens, mask):
        kinds = (tokens == SOFT).long()  # Without them the mask would be causal.
        return model(
            input_ids=tokens,
            pixel_values=shown,
            attention_mask=mask,
            token_type_ids=kinds,
            use_cache=False,
        ).logits

    with torch.no_grad():
        randomise(model)
        narrow.load_state_dict(model.state_dict())
        seen = model.model.get_image_features(pixels)
        expected, expected_narrow = (logits(m, tokens, mask) for m in (model, narrow))
        longer, longer_mask, gaps = tokens, mask, []
        for _ in range(CONTINUED):
            best = logits(model, longer, longer_mask)[:, -1].topk(2)
            gaps.append((best.values[:, 0] - best.values[:, 1]).numpy())
            longer = torch.cat([longer, best.indices[:, :1]], 1)
            longer_mask = torch.cat([longer_mask, torch.ones_like(mask[:, :1])], 1)
        generated = model.generate(
            input_ids=tokens,
            pixel_values=shown,
            attention_mask=mask,
            token_type_ids=(tokens == SOFT).long(),
            max_new_tokens=CONTINUED,
            do_sample=False,
            eos_token_id=None,
        )
    assert torch.equal(generated, longer), "cached decoding is the full pass"
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        for file, name in WRITTEN.items():
            shutil.copyfile(pathlib.Path(temporary) / file, folder / name)
    np.savez_compressed(
        folder / "vision.npz",
        images=images,
        encoded=seen.last_hidden_state.numpy(),
        soft=seen.pooler_output.numpy(),
        tokens=tokens.numpy().astype(np.int32),
        lengths=np.array([len(prompt) for prompt in prompts], np.int32),
        logits=expected.numpy(),
        narrow_logits=expected_narrow.numpy(),
        greedy=longer[:, length:].numpy().astype(np.int32),
        gaps=np.stack(gaps, 1).astype(np.float32),
    )
    print("vision", f"smallest gap {np.min(gaps):.4f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
