"""A process that is tracked: started by test_tracking.py with a JSON of what to do, prints a JSON of what happened."""

import json
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from dpo.config.schema import NODES
from dpo.records.quiet import quiet
from dpo.records.tracking import Evaluated, build_tracker, wandb

quiet()
spec = json.loads(sys.argv[1])
for name, seconds in spec.get("patience", {}).items():
    setattr(wandb, name, seconds)
settings = OmegaConf.to_object(
    OmegaConf.merge(OmegaConf.structured(NODES["tracking"][f"base_{spec['tracking']['backend']}"]), spec["tracking"])
)
began = time.monotonic()
folder, record = Path(spec["folder"]), {"parent": spec["sweep"], **spec.get("record", {})}
tracker = build_tracker(settings, folder, spec["config"], record, spec.get("words", []))
told = {"where": tracker.where, "known": dict(tracker.known), "started": time.monotonic() - began}
for step in spec["steps"]:
    if step == "wait":
        print("waiting", flush=True)
        sys.stdin.readline()
        continue
    tracker.log("train", step, {"loss": 1.0 / (step + 1), "rewards/margins": 0.5 * step})
    if step % 2 == 0:
        tracker.log("eval", step, {"rewards/accuracies": 0.75})
if spec.get("evaluated"):
    report = folder / "report.html"
    report.write_text("<p>report</p>")
    figures = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}
    samples = [["a question", "before | *it*", "after it"]]
    tracker.show(
        Evaluated("evaluation", 3, figures, {"train/loss": 0.25}, ["prompt", "before", "after"], samples, report)
    )
if spec.get("adapter"):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    tracker.keep(folder / "adapter")
began = time.monotonic()
tracker.finish(spec.get("exit_code", 0))
told["finished"] = time.monotonic() - began
told["torch"] = "torch" in sys.modules
print(json.dumps(told), flush=True)
