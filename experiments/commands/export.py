"""`kullback export`: parameters, or a whole model, for other programs."""

import argparse
import pathlib
from typing import Any

from kullback.experiments.commands import arguments
from kullback.experiments.commands.arguments import flag

FORMATS = ("hugging-face", "gguf", "peft")
QUANTIZATIONS = ("f32", "f16", "q8_0", "q4_0")
SUFFIX = ".gguf"


def add_parser(commands: Any) -> None:
    """Adds what `argparse` needs of it."""
    sub = commands.add_parser(
        "export",
        help="write a run's parameters as safetensors, or a model for other programs",
        description="MODEL is a run, a folder as Hugging Face has it, a .gguf file, or "
        "pretrained:NAME. A run of an agent becomes a file of safetensors.",
    )
    flag(sub, "model MODEL", arguments.path)
    flag(sub, "--seed S", arguments.seed, "which of a run's seeds")
    flag(sub, "--out PATH", arguments.path, "new", required=True)
    flag(
        *(sub, "--format", FORMATS),
        help="of a language model: a folder that transformers loads, or a file FILE.gguf that "
        "llama.cpp, Ollama and LM Studio run, with mmproj-FILE.gguf beside it if it sees images; "
        "or a run's adapters alone, which peft loads; default: hugging-face",
        default=FORMATS[0],
    )
    bits = "of gguf: type of the matrices; in q4_0 the embedding has 8 bits; default: f16"
    flag(sub, "--quantize", QUANTIZATIONS, bits)
    arguments.add_adapters(sub)
    arguments.add_trust_code(sub)
    sub.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from kullback.core import files

    if options.format == "gguf":
        if options.out.suffix != SUFFIX:
            raise ValueError(f"--out must be a file *{SUFFIX} for --format gguf, got {options.out}")
    elif options.quantize is not None or options.out.suffix == SUFFIX:
        what = f"--out {options.out}" if options.quantize is None else "--quantize"
        raise ValueError(f"{what} is of GGUF: add --format gguf")
    files.check_new_file(options.out)
    model = arguments.with_adapter(options.model, options.adapter)
    if options.format == "gguf":
        return _export_gguf(model, options.out, options)
    from kullback.experiments.runs import exports, models

    if options.format == "peft":
        exports.write_adapters(model, options.out, options.seed, options.base or "")
        print(f"adapters: {options.out}")
        return 0
    given = {"trust_code": options.trust_code, "base": options.base or ""}
    place = None if options.adapter else models.stored(model, options.seed, **given)
    if place is not None and place.run is not None and place.run.kind == "games":
        from kullback.experiments.runs import acting

        acting.of_run(place.run, seed=options.seed).export(options.out)
        print(f"parameters: {options.out}")
        return 0
    exports.write_folder(model, options.out, options.seed, **given)
    print(f"model: {options.out}")
    return 0


def _export_gguf(model: pathlib.Path, out: pathlib.Path, options: argparse.Namespace) -> int:
    from kullback.core import files
    from kullback.experiments.runs import exports
    from kullback.lm import terms
    from kullback.lm.formats import gguf_vision

    source = exports.open_source(
        model, options.seed, trust_code=options.trust_code, base=options.base or ""
    )
    quantization = options.quantize or "f16"
    plan = exports.plan_gguf(source, quantization)
    exports.check_new_gguf(out, source.notice)
    files.require_disk(out, plan.num_bytes, "weights in GGUF")
    print(f"GGUF in {quantization}: {files.size(plan.num_bytes)}", flush=True)
    if source.divergence != "kl":
        print(
            f"its operator is that of {source.divergence}, which the file notes for Kullback: "
            "other programs take the softmax, and draw other tokens"
        )
    if source.sight is not None and source.sight.images.preparation.pan_and_scan:
        print("its pan and scan is left out: such files have none, and llama.cpp does none")
    exports.write_gguf(out, plan, source)
    print(f"model: {out}")
    if source.sight is not None:
        print(f"images: {gguf_vision.beside(out)}, which goes with it")
    if source.notice is not None:
        print(f"terms: {out.parent / terms.NOTICE}, which goes with every copy of it")
    return 0
