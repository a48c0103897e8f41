"""Other libraries' chatter stays off the terminal; their warnings and errors do not."""

from __future__ import annotations

import logging
import os
import warnings


def quiet() -> None:
    """Silence bars and notices; must run before those libraries are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    # On CPUs with AVX512-BF16 it misses a package that we have no use for: generation there is dequantized first.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # A line for each int8 layer and forward on a GPU, that it rounds to fp16 on its way to 8 bits.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Renamings between these libraries are theirs to settle.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|torch)\b")
