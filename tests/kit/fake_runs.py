"""Runs on a card that is not there, in a process of their own: `python fake_runs.py` reads cases, writes outcomes."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One small run: which family, the words of its command, the kernel that would serve on the card, and what is
    planted in our code: (module, what stands there, what is put there)."""

    family: str
    words: tuple[str, ...]
    kernel: str | None = "varlen"
    mutant: tuple[str, str, str] | None = None

    def __str__(self) -> str:
        return " ".join((self.family, *self.words))


def outcomes(cases: Sequence[Case]) -> list[str | None]:
    """What each case failed with, None where it ran."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main() -> None:
    from dpo.records.quiet import quiet

    quiet()
    found = []
    for values in json.load(sys.stdin):
        case = Case(**values)
        undo = _plant(*case.mutant) if case.mutant else []
        try:
            run(case)
            found.append(None)
        except Exception as error:  # noqa: BLE001 - whatever a card would fail with
            if os.environ.get("DPO_TRACEBACK"):
                traceback.print_exc()
            found.append(f"{type(error).__name__}: {error}"[:300])
        for function, code in undo:
            function.__code__ = code
    print(json.dumps(found))


def run(case: Case) -> None:
    """Reference pass, dev evaluation and two steps of training."""
    import packed_models
    from transformers import AutoConfig

    from dpo.config.schema import Config
    from dpo.engine.kernels import cuda
    from dpo.modeling.device import choose_compute
    from dpo.pages.defaults import composed
    from dpo.planning.allocator import Allocator
    from dpo.planning.card import Card, fake_card
    from dpo.planning.rehearsal import Rehearsal
    from dpo.planning.trace import Trace

    config = composed("config", Config, ["tracking=none", "hardware=gpu_24gb", "dpo.batch_size=2", *case.words])
    sizes = {**packed_models.SHAPE, **packed_models.EXTRA[case.family]}
    shape = AutoConfig.for_model(case.family, **sizes)
    pairs = packed_models.random_pairs(4)
    allocator = Allocator(24 * 10**9)
    trace = Trace(allocator)
    asked, cuda.probe = cuda.probe, lambda *_: cuda.Probe(case.kernel)  # type: ignore[assignment]
    try:
        with fake_card(Card("fake", 24 * 10**9), allocator), trace:
            compute = choose_compute(config.hardware.device, config.hardware.precision)
            made = Rehearsal(config, shape, compute, pairs, trace)
            made.reference(pairs)
            made.evaluation(pairs)
            made.train([pairs[:2], pairs[2:]], gradients=True)
            _check(made, config)
    finally:
        cuda.probe = asked


def _check(made: Any, config: Any) -> None:
    """Every trained tensor lies on the card in fp32, and the optimizer has stepped twice on it."""
    trained = [p for p in made.trainer.model.parameters() if p.requires_grad]
    assert trained
    assert {(str(p.device), str(p.dtype)) for p in trained} == {("cuda:0", "torch.float32")}
    assert len(made.trainer.optimizer.state) == len(trained)
    assert made.trainer.state.global_step == 2
    assert made.trainer.engine.name == config.hardware.engine.value


def _plant(module: str, before: str, after: str) -> list[tuple[Any, Any]]:
    """Give the functions of a loaded module the code they would have with this text; how to undo that."""
    original = import_module(module)
    source = inspect.getsource(original)
    assert source.count(before) >= 1, f"{before!r} is not in {module}"
    changed = types.ModuleType(module)
    changed.__file__ = original.__file__
    sys.modules[module] = changed
    try:
        exec(compile(source.replace(before, after), str(original.__file__), "exec"), changed.__dict__)  # noqa: S102 - our own source
    finally:
        sys.modules[module] = original
    return [undo for one, other in _functions(original, changed) for undo in [_swap(one, other)] if undo]


def _functions(one: Any, other: Any) -> list[tuple[Any, Any]]:
    found = []
    for name, value in vars(one).items():
        twin = vars(other).get(name)
        value, twin = (
            inspect.unwrap(value) if callable(value) else value,
            inspect.unwrap(twin) if callable(twin) else twin,
        )
        if isinstance(value, staticmethod) and isinstance(twin, staticmethod):
            value, twin = value.__func__, twin.__func__
        if inspect.isclass(value) and value.__module__ == getattr(one, "__name__", one.__class__) and twin is not value:
            found += _functions(value, twin)
        elif inspect.isfunction(value) and inspect.isfunction(twin) and value is not twin:
            found.append((value, twin))
    return found


def _swap(one: Any, other: Any) -> tuple[Any, Any] | None:
    before = one.__code__
    names = ("co_code", "co_consts", "co_names", "co_varnames")
    if all(getattr(before, name) == getattr(other.__code__, name) for name in names):
        return None
    one.__code__ = other.__code__
    return one, before


if __name__ == "__main__":
    _main()
