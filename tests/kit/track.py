"""A process that is tracked: started by test_tracking.py with a JSON of what to do, prints a JSON of what happened."""

import json
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from dpo.config.schema import NODES
from dpo.records.quiet import quiet
from dpo.records.tracking import build_tracker, wandb

quiet()
spec = json.loads(sys.argv[1])
for name, seconds in spec.get("patience", {}).items():
    setattr(wandb, name, seconds)
settings = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(NODES["tracking"][f"base_{spec['tracking']['backend']}"]), spec["tracking"])
)
began = time.monotonic()
tracker = build_tracker(settings, Path(spec["folder"]), spec["config"], spec["sweep"], spec.get("job_type", "train"))
told = {"where": tracker.where, "started": time.monotonic() - began}
for step in spec["steps"]:
    if step == "wait":
        print("waiting", flush=True)
        sys.stdin.readline()
        continue
    tracker.log("train", step, {"loss": 1.0 / (step + 1), "rewards/margins": 0.5 * step})
    if step % 2 == 0:
        tracker.log("eval", step, {"rewards/accuracies": 0.75})
began = time.monotonic()
tracker.finish(spec.get("exit_code", 0))
told["finished"] = time.monotonic() - began
told["torch"] = "torch" in sys.modules
print(json.dumps(told), flush=True)
