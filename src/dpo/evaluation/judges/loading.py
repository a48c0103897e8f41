"""Finding the weights of judge models, with errors that name the judge's own key."""

from __future__ import annotations

from dataclasses import replace

from dpo.errors import DpoError
from dpo.modeling.weights import Weights, resolve


def resolve_judge(key: str, path: str, revision: str) -> Weights:
    """`dpo.modeling.weights.resolve` for the config key `key`."""
    try:
        return replace(resolve(path, revision), key=key)
    except DpoError as error:
        # Its hints for the policy's model would be no help here.
        lines = [line for line in str(error).splitlines() if "model=" not in line]
        raise type(error)("\n".join(lines).replace("model.path=", f"{key}=", 1)) from None
