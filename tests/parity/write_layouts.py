"""Writes the ids that transformers' Gemma3Processor makes of conversations with images: FOLDER.

layouts.json: a tokenizer.json of few pieces, and conversations: a list of parts each, which are
strings and names of control tokens, such as "<start_of_image>", the sizes of their images, whether
pan and scan is on, and their ids.
"""

import json
import pathlib
import sys

import numpy as np
import tokenizers
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

IMAGE = "<start_of_image>"
SPECIAL = [f"<{name}>" for name in ("pad", "eos", "bos", "unk", "start_of_turn", "end_of_turn")]
SPECIAL += [IMAGE, "<end_of_image>", "<image_soft_token>"]
SOFT_TOKENS = 4
TEXTS = [
    "user\n\n\nWhat is this?\n\n\n\nmodel\nHere is the original image ",
    " and here are some crops to help you see better \n\n\n\n\n",
    "How many of them are red?\n\n\n",
]
OPEN, CLOSE = ["<bos>", "<start_of_turn>", "user\n"], ["<end_of_turn>", "\n"]
CASES = [  # Parts, sizes of images, pan and scan.
    ([*OPEN, IMAGE, "What is this?", *CLOSE], [(9, 9)], False),
    ([*OPEN, "What is", IMAGE, "this?", *CLOSE, "<start_of_turn>", "model\n"], [(9, 9)], False),
    ([*OPEN, "\nWhat is this?\n", IMAGE, *CLOSE], [(9, 9)], False),
    ([*OPEN, IMAGE, IMAGE, "How many?", *CLOSE], [(9, 9)] * 2, False),
    ([*OPEN, IMAGE, "\n", IMAGE, " are red", *CLOSE], [(9, 9)] * 2, False),
    ([*OPEN, "What is ", IMAGE, "?", *CLOSE], [(1000, 400)], True),
    ([*OPEN, IMAGE, IMAGE, *CLOSE], [(300, 300), (300, 1300)], True),
]


def main(folder):
    """Writes the fixture."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS * 3, trainer)
    names = dict(zip(("boi_token", "eoi_token", "image_token"), SPECIAL[6:], strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=names)
    side = {"height": 8, "width": 8}
    images = Gemma3ImageProcessorPil(size=side)
    processor = Gemma3Processor(images, tokenizer, image_seq_length=SOFT_TOKENS)
    cases = []
    for parts, sizes, pan_and_scan in CASES:
        pictures = [Image.fromarray(np.zeros((h, w, 3), np.uint8)) for w, h in sizes]
        given = processor(
            text="".join(parts),
            images=pictures,
            do_pan_and_scan=pan_and_scan,
            add_special_tokens=False,
        )
        ids = np.asarray(given["input_ids"]).reshape(-1).tolist()
        cases.append({"parts": parts, "sizes": sizes, "pan_and_scan": pan_and_scan, "ids": ids})
    contents = {
        "tokenizer": json.loads(inner.to_str()),
        "soft_tokens": SOFT_TOKENS,
        "cases": cases,
    }
    text = json.dumps(contents, indent=None, separators=(",", ":"))
    (folder / "layouts.json").write_text(text + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
