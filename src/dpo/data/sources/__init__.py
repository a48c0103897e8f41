"""One module a source, each with one pure function `to_pair(row, row_id, dataset) -> Pair | Refusal`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpo.data.pair import Pair
from dpo.data.refusal import Refusal
from dpo.data.sources import helpsteer3, hh_rlhf, local, shp, synthetic, ultrafeedback, webgpt

ToPair = Callable[[Any, str, Any], Pair | Refusal]

SOURCES: dict[str, ToPair] = {
    "synthetic": synthetic.to_pair,
    "hh_rlhf": hh_rlhf.to_pair,
    "shp": shp.to_pair,
    "webgpt": webgpt.to_pair,
    "ultrafeedback": ultrafeedback.to_pair,
    "helpsteer3": helpsteer3.to_pair,
    "local": local.to_pair,
    "hub": local.to_pair,
}
