"""Each hardware option and key is alive, as far as that shows without the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import tiny_model

from dpo.config.folder import options
from dpo.data.pair import TokenPair
from dpo.engine import memory, usable
from dpo.errors import ConfigError
from dpo.modeling.device import Compute, choose_compute, describe
from dpo.training.arguments import build_arguments

CARDS = {"gpu_16gb": 16, "gpu_24gb": 24, "a100_40gb": 40, "h100_80gb": 80, "h200": 141}


def test_every_option_composes(compose):
    names = set(options("hardware"))
    assert names == {"auto", "cpu", "gpu", "rocm", "mps", *CARDS}
    for name in names:
        lora = "lora=lora" if name == "mps" else "lora=qlora"
        assert compose(f"hardware={name}", lora).hardware.memory_gb == CARDS.get(name)


@pytest.fixture(scope="module")
def eight_billion() -> tuple[Any, int]:
    """Llama-3.1-8B's shape without its weights, and the bytes they take in NF4 with double quantization."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    linear = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    rest = sum(p.numel() for n, p in model.named_parameters() if "proj" not in n)
    return model, int(linear * (4 + 0.127) / 8) + 2 * rest


def test_a_run_is_sized_for_a_card_that_is_not_here(compose, eight_billion, monkeypatch):
    """An 8B model in NF4 with pairs of 512 tokens a side fits each card; a larger card holds more at once."""
    model, held = eight_billion
    monkeypatch.setitem(memory.ENOUGH, "meta", memory.ENOUGH["cuda"])
    monkeypatch.setitem(memory.SHARE, "meta", memory.SHARE["cuda"])
    pairs = [TokenPair("p", list(range(256)), list(range(256)), list(range(256)))]
    plans = []
    for name in CARDS:
        free = usable.usable(10**12, compose(f"hardware={name}").hardware.memory_gb, held, 1)
        plans.append(memory.plan(model, pairs, engine="packed", dtype=torch.bfloat16, free=free))
    budgets = [plan.token_budget for plan in plans]
    assert all(budget >= 768 for budget in budgets)
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1] == memory.ENOUGH["cuda"]


def test_a_cap_leaves_what_the_model_does_not_take():
    assert usable.usable(100 * 10**9, 16, 6 * 10**9, 1) == 10 * 10**9
    assert usable.usable(4 * 10**9, 16, 6 * 10**9, 1) == 4 * 10**9
    assert usable.usable(100 * 10**9, 16, 20 * 10**9, 1) == 0
    assert usable.usable(8 * 10**9, None, 10**9, 2) == 4 * 10**9
    model = tiny_model("llama", torch.float32)
    assert usable.held_bytes(model) == 4 * sum(p.numel() for p in model.parameters())


def test_a_larger_card_is_capped(monkeypatch):
    class Properties:
        total_memory = 80 * 10**9

    capped: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", capped.append)
    for gigabytes in (None, 16, 141):
        usable.cap_device(gigabytes)
    assert capped == [0.2, 1.0]


def test_amd_and_metal_are_what_torch_calls_them(compose, monkeypatch, tmp_path):
    rocm, mps = compose("hardware=rocm").hardware, compose("hardware=mps", "lora=lora").hardware
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.version, "hip", "6.3")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_compute(rocm.device, rocm.precision) == Compute("cuda", torch.bfloat16)
    metal = choose_compute(mps.device, mps.precision)
    assert metal == Compute("mps", torch.float32)
    assert "Metal" in describe(metal)
    monkeypatch.undo()
    assert mps.engine.name == "plain"
    arguments = build_arguments(compose("hardware=mps", "lora=lora"), metal, tmp_path)
    assert (arguments.use_cpu, arguments.dataloader_pin_memory) == (False, False)


def test_the_device_of_the_weights_is_the_one_chosen(monkeypatch, tmp_path):
    import transformers

    from dpo.modeling.policy import load_base
    from dpo.modeling.weights import Weights

    asked: dict[str, Any] = {}

    def remember(folder: Any, **kwargs: Any) -> Any:
        asked.update(kwargs)
        return tiny_model("llama", torch.float32), dict.fromkeys(
            ("missing_keys", "unexpected_keys", "mismatched_keys"), ()
        )

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", remember)
    tiny_model("llama").config.save_pretrained(tmp_path)
    weights = Weights(tmp_path, "here", None, "")
    for device, expected in (("cpu", "cpu"), ("cuda", 0), ("mps", "mps")):
        load_base(weights, None, Compute(device, torch.float32), "sdpa")
        assert asked["device_map"] == {"": expected}


@pytest.mark.parametrize(("multiplies", "kind"), [(False, torch.float32), (True, torch.bfloat16)])
def test_bf16_that_a_card_emulates_is_not_chosen(compose, monkeypatch, multiplies, kind):
    """T4 and V100: torch calls bf16 supported there, unless it is asked without emulation."""
    hardware = compose("hardware=gpu").hardware
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or multiplies
    )
    assert choose_compute(hardware.device, hardware.precision) == Compute("cuda", kind)


def test_an_int8_layer_says_nothing_at_each_forward(caplog):
    from bitsandbytes.autograd._functions import MatMul8bitLt

    from dpo.records.quiet import quiet

    quiet()
    MatMul8bitLt.apply(torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(4, 8, dtype=torch.float16))
    assert not caplog.records


def test_gradients_and_moments_are_no_room_for_activations():
    model = tiny_model("llama", torch.float32).requires_grad_(True)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert usable.training_bytes(model, "adamw_torch_fused") == pytest.approx((4 + 8) * numbers, abs=1)
    assert usable.training_bytes(model, "paged_adamw_8bit") == pytest.approx((4 + 2) * numbers, abs=1)
    model.requires_grad_(False)
    assert usable.training_bytes(model, "adamw_torch_fused") == 0


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(("option", "named"), [("gpu", "no GPU"), ("rocm", "not built for ROCm"), ("mps", "no Metal")])
def test_a_device_that_is_not_here_is_named(compose, option, named):
    hardware = compose(f"hardware={option}", "lora=lora").hardware
    with pytest.raises(ConfigError, match=named):
        choose_compute(hardware.device, hardware.precision)


@pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available() or Path("/dev/kfd").exists(),
    reason="for machines without a GPU",
)
@pytest.mark.parametrize("option", ["gpu", "rocm", "mps"])
def test_a_device_that_is_not_here_is_refused_before_torch_is_loaded(option, tmp_path):
    words = [f"hardware={option}", "lora=lora", "tracking=none"]
    script = (
        f"import sys, dpo.train; sys.argv[1:] = {words!r}\ntry: dpo.train.main()\n"
        "except SystemExit as end: print('ENDED', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "ENDED 2 False" in done.stdout, done.stderr
    assert f"hardware.device={'cuda' if option == 'gpu' else option}: " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["hardware=mps"], "bitsandbytes has no 4-bit"),
        (["hardware=mps", "lora=lora", "lora.dropout=0.1"], "random state"),
        (["hardware=mps", "lora=lora", "hardware.parallel=ddp"], "one GPU"),
        (["hardware=mps", "lora=lora", "dpo.optimizer=paged_adamw_8bit"], "CUDA"),
        (["hardware.memory_gb=0"], "above 0"),
    ],
)
def test_what_a_device_cannot_do_is_one_line(compose, overrides, named):
    with pytest.raises(ConfigError, match=named) as caught:
        compose(*overrides)
    assert len(str(caught.value).splitlines()) == 1
