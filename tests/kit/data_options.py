"""Dataset configs for tests: an option of conf/dataset with some values changed, as composing it gives."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dpo.config.checks.mixture import resolve
from dpo.config.datasets import SCHEMAS, Mixture
from dpo.data.load import Splits, load_files, locate

REPOSITORY = Path(__file__).parents[2]
REAL_DATA = Path(os.environ.get("DPO_REAL_DATA", REPOSITORY.parent / "shared" / "data"))

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason=f"real rows not found at {REAL_DATA}; set DPO_REAL_DATA to their folder"
)


def dataset(option: str, **values: Any) -> Any:
    """The dataclass of `dataset=option` with `values` on top."""
    folder = REPOSITORY / "conf" / "dataset"
    own = OmegaConf.load(folder / f"{option}.yaml")
    del own["defaults"]
    layers = [OmegaConf.structured(SCHEMAS[option]), OmegaConf.load(folder / "shared.yaml"), own, values]
    made = OmegaConf.to_object(OmegaConf.merge(*layers))
    if isinstance(made, Mixture):
        resolve(made)
    return made


def load_splits(config: Any) -> Splits:
    """The checked pairs of a dataset; the readers hold their files open, so these outlive their folder."""
    with tempfile.TemporaryDirectory() as folder:
        return load_files(config, locate(config), Path(folder))
