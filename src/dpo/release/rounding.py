"""Rounding merged weights to 16 bits so that what training changed survives on average.

A gentle run changes a weight by less than a step of bf16. Rounded to nearest, such a weight falls back to what it was:
the changes are small on one side of a step far more often than not, so the errors do not cancel in a sum over inputs,
and half of the training is lost. Rounded at random by distance, every weight is right in expectation and they do.
"""

from __future__ import annotations

from typing import Any


class StochasticRounding:
    """Rounds fp32 tensors to `dtype`, up or down with odds by distance: E[rounded] = value.

    Source: Gupta et al., Deep Learning with Limited Numerical Precision (arXiv:1502.02551), section 3. The same seed
    gives the same weights on the same kind of device. What `dtype` holds exactly, such as weights no adapter touched,
    stays as it is.
    """

    def __init__(self, dtype: Any, seed: int) -> None:
        self.dtype, self.seed = dtype, seed
        self._generators: dict[str, Any] = {}

    def __call__(self, values: Any) -> Any:
        """`values` in `dtype`; only fp32 to a 16-bit type is drawn, anything else is a plain conversion."""
        import torch

        near = values.to(self.dtype)
        if values.dtype is not torch.float32 or near.element_size() != 2:
            return near
        back = near.to(torch.float32)
        # Neighbours of a float lie next to each other as integers of sign and magnitude.
        step = torch.where(values.abs() > back.abs(), 1, -1).to(torch.int16)
        other = (near.view(torch.int16) + step).view(self.dtype)
        # Not a number where `near` is exact zero or infinite; the comparison is then false and `near` stays.
        odds = (values - back) / (other.to(torch.float32) - back)
        drawn = torch.rand(values.shape, generator=self._generator(values.device), device=values.device)
        return torch.where(drawn < odds, other, near)

    def _generator(self, device: Any) -> Any:
        import torch

        if device.type not in self._generators:
            self._generators[device.type] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device.type]
