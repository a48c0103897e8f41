"""Held-out log-probs of the models a certificate compares, kept so that a second format need not score them again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo.caches.folder import cache_folder
from dpo.data.pair import TokenPair
from dpo.engine.log_probs import sequence_log_probs
from dpo.errors import CheckpointError
from dpo.evaluation.folder import digest
from dpo.evaluation.measure import SCORING_TOKENS
from dpo.evaluation.sides import BASELINE, POLICY, Sides
from dpo.records.files import write_sealed
from dpo.records.progress import StageProgress
from dpo.records.read import json_file
from dpo.release.measure import Floats, Scored


def score(model: Any, what: str, tokens: Sequence[TokenPair]) -> Floats:
    """(pairs, 2) log-probs in nats of chosen and rejected completions."""
    with StageProgress(what, len(tokens)) as progress:
        return np.array(sequence_log_probs(model, tokens, SCORING_TOKENS, progress.advance), dtype=np.float64)


class Scorer:
    """Scores the same pairs by several models; `facts` says what the figures depend on besides the pairs' tokens."""

    def __init__(self, tokens: Sequence[TokenPair], facts: str) -> None:
        self.tokens = tokens
        self.key = digest([facts, *(str(t.content) for t in tokens)])

    def both(self, name: str, label: str, sides: Sides | Callable[[], Sides]) -> Scored:
        """Log-probs of the policy and of its reference; `sides` may be a function, called only when needed."""
        found = [self._known(f"{name}-{side}") for side in (POLICY, BASELINE)]
        if any(scores is None for scores in found):
            sides = sides if isinstance(sides, Sides) else sides()
            for i, side in enumerate((POLICY, BASELINE)):
                with sides.use(side) as model:
                    found[i] = self.one(f"{name}-{side}", label if i == 0 else f"{label}, adapter off", model)
        policy, reference = found
        assert policy is not None
        assert reference is not None
        return Scored(name, label, policy, reference)

    def one(self, name: str, label: str, model: Any) -> Floats:
        """Log-probs of one model."""
        found = self._known(name)
        if found is None:
            found = score(model, label, self.tokens)
            write_sealed(self._file(name), {"scores": found.tolist()})
        return found

    def _file(self, name: str) -> Path:
        return cache_folder("certificates") / f"{self.key}-{name}.json"

    def _known(self, name: str) -> Floats | None:
        try:
            found = np.array(json_file(self._file(name)).get("scores"), dtype=np.float64)
        except CheckpointError as error:
            print(f"{error}; scored again", file=sys.stderr, flush=True)
            return None
        except (ValueError, TypeError):
            return None
        return found if found.shape == (len(self.tokens), 2) and bool(np.isfinite(found).all()) else None
