"""The packed layout of a few pairs: one row [prompt, chosen, rejected] per pair, all rows joined into one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class PackedLayout:
    """Where every token of a micro-batch lies in the packed row.

    B pairs, T = sum(P + C + R) packed tokens, N completion tokens that count (all C + R but those given to the
    policy), U = N - B rows that predict them (the last prompt row predicts the first token of both sides).

    Not frozen: distributed wrappers copy such arguments field by field.
    """

    token_ids: torch.Tensor
    """[1, T] int64."""
    position_ids: torch.Tensor
    """[1, T] int64; rejected restarts where its prompt ended."""
    predictor_rows: torch.Tensor
    """[U] packed rows whose hidden states go through the LM head."""
    target_rows: torch.Tensor
    """[N] index into `predictor_rows` of the row that predicts each completion token."""
    targets: torch.Tensor
    """[N] counted completion token ids: those of chosen of pair 0, of its rejected, then pair 1, ...; where prompts are
    asked for as well, then theirs, each by a row of its own."""
    lengths: tuple[tuple[int, int, int], ...]
    """(P, C, R) of each pair, as Python ints so that no kernel launch has to wait for them."""
    counted: tuple[tuple[int, int], ...]
    """(chosen, rejected) tokens of each pair among the N."""
    cache: dict[object, object] = field(default_factory=dict, repr=False, compare=False)
    """Masks and offsets derived once and used by every layer."""

    @property
    def longest(self) -> int:
        """Tokens of the longest single sequence: max over pairs of P + max(C, R)."""
        return max(prompt + max(chosen, rejected) for prompt, chosen, rejected in self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedLayout:
        """The same layout on `device`; itself when it is already there."""
        if self.token_ids.device == torch.device(device):
            return self
        return PackedLayout(
            token_ids=self.token_ids.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            predictor_rows=self.predictor_rows.to(device, non_blocking=non_blocking),
            target_rows=self.target_rows.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
            lengths=self.lengths,
            counted=self.counted,
        )
