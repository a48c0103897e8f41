"""A sequence classifier in safetensors: token ids to logits, the same in batches of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpo.config.lora import Quantization
from dpo.config.nearest import nearest
from dpo.errors import ConfigError
from dpo.modeling.weights import Weights

Rows = Sequence[dict[str, list[int]]]


class Classifier:
    """The loaded model of the config node `key`, whose `path` is asked for; `names` are its outputs, in order.

    `longest`: the most tokens a row may have; None: not bounded. Raises ConfigError for a model without a head.
    """

    def __init__(self, key: str, path: str, weights: Weights, quantization: Quantization | None) -> None:
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        from dpo.config.hardware import Device, Precision
        from dpo.modeling.device import choose_compute
        from dpo.modeling.loading import load_counted
        from dpo.modeling.policy import quantization_config

        logging.disable_progress_bar()
        self._key, self._path = key, path
        compute = choose_compute(Device.auto, Precision.auto)
        bits: Any = quantization_config(quantization, compute)
        if bits is not None:
            # The head is small and its rounding would be the score's.
            bits.llm_int8_skip_modules = ["score", "classifier", "pooler"]
        self.model = load_counted(
            AutoModelForSequenceClassification,
            weights.folder,
            f"{weights.named}: not a whole sequence classifier",
            dtype=compute.dtype,
            quantization_config=bits,
            device_map={"": 0 if compute.device == "cuda" else "cpu"},
            trust_remote_code=False,
        )
        self.model.eval()
        self.config: Any = self.model.config
        self.names = [str(self.config.id2label[i]) for i in range(self.config.num_labels)]
        text = self.config.get_text_config()
        # RoBERTa and its kin count positions from the padding id on.
        offset = (text.pad_token_id or 0) + 1 if text.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        positions = getattr(text, "max_position_embeddings", None)
        self.longest: int | None = None if positions is None else positions - offset

    def column(self, label: str | None, called: Sequence[str], wanted: str) -> int:
        """Which output is meant: `label` by name or number; else the only one, or the one named as in `called`."""
        if label is None:
            known = [i for i, name in enumerate(self.names) if name.lower() in called]
            if len(self.names) == 1 or len(known) == 1:
                return known[0] if known else 0
            raise ConfigError(
                f"{self._key}.path={self._path}: has {len(self.names)} outputs ({', '.join(self.names[:8])}); "
                f"name the one that is the {wanted}: {self._key}.label=NAME"
            )
        if label in self.names:
            return self.names.index(label)
        if label.isdecimal() and int(label) < len(self.names):
            return int(label)
        raise ConfigError(f"{self._key}.label={label}: no such output{nearest(label, self.names)}")

    def batches(self, rows: Rows, size: int) -> Iterator[tuple[list[int], Any]]:
        """(indices of rows, their logits (rows, outputs) in fp32), `size` rows of like length at a time."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            yield part, self.logits([rows[i] for i in part])

    def logits(self, rows: Rows) -> Any:
        """(rows, outputs) in fp32.

        Decoders read their outputs at the last token that is not the padding id. Where the model names no padding id,
        one that no row contains is used, so that this is the last token, as it is without padding.
        """
        import torch

        config = self.config.get_text_config()
        pad = config.pad_token_id
        if pad is None or pad < 0:
            used = {token for row in rows for token in row["input_ids"]}
            pad = next(i for i in range(config.vocab_size) if i not in used)
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor(
                [row[name] + [pad if name == "input_ids" else 0] * (width - len(row[name])) for row in rows],
                device=self.model.device,
            )
            for name in rows[0]
        }
        lengths = torch.tensor([[len(row["input_ids"])] for row in rows], device=self.model.device)
        mask = (torch.arange(width, device=self.model.device) < lengths).long()
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            with torch.no_grad():
                return self.model(**batch, attention_mask=mask).logits.float()
        finally:
            config.pad_token_id = before
