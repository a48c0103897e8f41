"""Every causal family that transformers ships, as a tiny random model, driven through the verbs in one process."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import tiny

SIZES = {
    32: "hidden_size n_embd d_model embed_dim hidden_dim lru_width word_embed_proj_dim embedding_size",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim ff_proj d_ff",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_experts_per_tok top_k moe_topk "
    "num_key_value_heads num_kv_heads num_hidden_groups mamba_n_groups n_groups "
    "linear_num_key_heads num_nextn_predict_layers",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads",
    8: "head_dim rotary_dim qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_d_state linear_key_head_dim "
    "linear_value_head_dim attention_head_dim",
    16: "moe_intermediate_size q_lora_rank kv_lora_rank shared_expert_intermediate_size mamba_d_head mamba_head_dim "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_intermediate_size",
    512: "max_position_embeddings n_positions max_seq_len n_ctx max_target_positions",
    1: "n_group topk_group first_k_dense_replace n_shared_experts num_linear_heads",
}  # fmt: skip
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
MLA = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"
OWN: dict[str, dict[str, Any]] = {
    **{kind: {"num_key_value_heads": 4, "num_experts_per_tok": 2} for kind in MLA.split()},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "reformer": {"is_decoder": True},
    "falcon_h1": {"mamba_d_ssm": 64},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 26},
    "gemma4": {"vocab_size_per_layer_input": 26},
    "gemma4_text": {"vocab_size_per_layer_input": 26},
}
"""What the sizes of a family need beside these."""
LARGEST = 20_000_000
STEP = ("dpo.max_steps=1", "dpo.batch_size=2", "dataset.test_fraction=0.3", "dataset.limit=24", "dpo.eval_limit=2")
LOOK = ("evaluation.prompts=2", "evaluation.max_new_tokens=4", "evaluation.divergence_prompts=1")
VERBS = ("train", "evaluate", "export")
WAYS = ("lora", "qlora")


def families() -> list[str]:
    """By their names in a config.json."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small(kind: str, tokenizer: Any) -> Any:
    """A tiny config of a family, by the names that sizes go by."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    usual = CONFIG_MAPPING[kind]()
    found = _sizes(usual)
    found |= {"vocab_size": len(tokenizer), "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    text = usual.get_text_config()
    if text is not usual:
        part = next(name for name, value in vars(usual).items() if value is text)
        parts = {name: _sizes(value) for name, value in vars(usual).items() if isinstance(value, PreTrainedConfig)}
        own = {"vocab_size": len(tokenizer), "pad_token_id": 2} | OWN.get(kind, {})
        return CONFIG_MAPPING[kind](**{**parts, part: {**_sizes(text), **own}})
    return CONFIG_MAPPING[kind](**(found | OWN.get(kind, {})))


def _sizes(config: Any) -> dict[str, int]:
    found = {}
    for name, size in SMALL.items():
        settable = not isinstance(getattr(type(config), name, None), property)
        if settable and isinstance(vars(config).get(config.attribute_map.get(name, name)), int):
            found[name] = size
    return found


def _byte_level() -> Any:
    """For families whose tokenizer transformers takes for its own class, whatever the folder says."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    plain = tiny.make_tokenizer()
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = [plain.unk_token, plain.bos_token, plain.pad_token, plain.eos_token, "<|endoftext|>"]
    special = list(dict.fromkeys(token for token in special if token))
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=bytes_))
    names = {"bos_token": plain.bos_token, "eos_token": plain.eos_token, "pad_token": plain.pad_token}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=plain.chat_template, **names)


def make(kind: str, folder: Path) -> str | None:
    """Write a tiny random model; why not, if it cannot be made."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _byte_level() if kind in ("qwen2", "qwen3_5_moe", "qwen3_5_moe_text") else tiny.make_tokenizer()
    try:
        config = small(kind, tokenizer)
        with torch.device("meta"):
            numbers = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if numbers > LARGEST:
            return f"{numbers / 1e6:.0f} million weights at its smallest here"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        if model.generation_config is not None:
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        # What fails without us is a config that hangs together in no way, not a family that cannot be trained.
        with torch.no_grad():
            model.eval()(input_ids=torch.tensor([[1, 3, 5, 7, 9]]), use_cache=False)
        model.save_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - a family whose sizes hang together in a way of their own
        return f"no tiny config: {(str(error).strip().splitlines() or [type(error).__name__])[0][:90]}"
    tokenizer.save_pretrained(folder)
    return None


def drive(kind: str, folder: Path) -> dict[str, list[str]] | str:
    """What each verb made of a family by each way to train it, or why it was not tried.

    All in one process of its own, so that libraries are imported once: "yes", the words of a refusal with its exit
    code, or TRACEBACK with the last line.
    """
    process = tiny._CONTEXT.Process(target=_drive, args=(kind, str(folder)))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "over 300 seconds on a core"
    told = folder / "told.json"
    if told.is_file():
        found: dict[str, list[str]] | str = json.loads(told.read_text())
        return found
    lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines() or ["nothing"]
    return {way: [f"TRACEBACK ({process.exitcode}): {lines[-1][:160]}", "", ""] for way in WAYS}


def _drive(kind: str, place: str) -> None:
    import torch

    folder = Path(place)
    os.chdir(folder)
    os.environ |= {"HF_HUB_OFFLINE": "1", "DPO_OUTPUTS": str(folder / "outputs")}
    torch.set_num_threads(1)
    out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    told: Any = make(kind, folder / "model")
    if told is None:
        pairs, told = tiny.make_pairs(folder / "pairs.jsonl", 24), {}
        for way in WAYS:
            words = [*tiny.arguments(folder / "model", pairs, *STEP), f"lora={way}", f"name={way}"]
            told[way] = [_outcome("train", words), "", ""]
            if told[way][0] != "yes":
                continue
            run = tiny.folders(folder, way)[0]
            told[way][1] = _outcome("evaluate", [f"run={run}", *LOOK, "evaluation.resamples=100"])
            # What four bits lose is more than one step gives; plain fp32 has nothing to lose.
            force = "true" if way == "qlora" else "false"
            told[way][2] = _outcome("export", [f"run={run}", "resamples=100", "format=fp32", f"force={force}"])
    (folder / "told.json").write_text(json.dumps(told))


def _outcome(verb: str, words: list[str]) -> str:
    began = Path("output.txt").stat().st_size
    sys.argv = [f"dpo.{verb}", *words]
    sys.orig_argv = ["python", "-m", f"dpo.{verb}", *words]
    code: Any = 0
    try:
        importlib.import_module(f"dpo.{verb}").main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    if not code:
        return "yes"
    output = Path("output.txt").read_bytes()[began:].decode(errors="replace")
    lines = output.strip().splitlines() or ["nothing"]
    error = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    if error is None or "Traceback" in output:
        return f"TRACEBACK ({code}): {lines[-1][:160]}"
    return f"{lines[error][7:].replace(os.getcwd(), '')[:200]} (exit {code})"
