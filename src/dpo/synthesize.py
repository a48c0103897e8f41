"""`python -m dpo.synthesize`: sample answers from a model, judge them by the rule, write preference pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.config.app import main as app
from dpo.config.synthesize import Synthesize
from dpo.data.synthetic.pairs import SPLITS, pairs_of, split_of, without_a_pair
from dpo.data.synthetic.prompts import Prompt, from_file, shipped
from dpo.evaluation.rules import check
from dpo.records.files import write_text


def synthesize(config: Synthesize) -> Path:
    """Run all rounds, going on where samples.jsonl ends, and write the three splits; returns the folder."""
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    prompts = from_file(Path(config.prompts).expanduser()) if config.prompts else shipped()
    samples = out / "samples.jsonl"
    for number in range(config.rounds):
        before = [sample for sample in judge(samples) if sample["round"] < number]
        missing = without_a_pair(before) if number else {prompt.text for prompt in prompts}
        _sample_round(config, [prompt for prompt in prompts if prompt.text in missing], number, samples)
    _write_splits(config, list(judge(samples)), out)
    return out


def _sample_round(config: Synthesize, prompts: list[Prompt], number: int, samples: Path) -> None:
    done = sum(json.loads(line)["round"] == number for line in _lines(samples))
    wanted = len(prompts) * config.n
    if done >= wanted:
        return
    from dpo.evaluation.generate import Sampling, sample
    from dpo.modeling.device import choose_compute
    from dpo.modeling.policy import load_base, templates
    from dpo.modeling.tokenizer import load_tokenizer
    from dpo.modeling.weights import resolve

    compute = choose_compute(config.hardware.device, config.hardware.precision)
    weights = resolve(config.model.path, config.model.revision)
    tokenizer = load_tokenizer(weights.folder, config.model.chat_template, templates())
    model = load_base(weights, None, compute, config.hardware.attention).eval()
    drawn = [prompt for prompt in prompts for _ in range(config.n)]
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for p in drawn
    ]
    sampling = Sampling(
        config.sampling.temperature, config.sampling.top_k, config.sampling.max_new_tokens, config.seed + number
    )
    stops = {tokenizer.eos_token_id, *_eos(model)}
    batch = config.sampling.batch_size
    # Whole batches only: one torn by a kill is drawn again, the same.
    whole = done // batch
    _keep(samples, number, whole * batch)
    with samples.open("a", encoding="utf-8") as file:
        for indices, answers in sample(model, ids, sampling, stops, tokenizer.pad_token_id, batch, skip=whole):
            for index, answer in zip(indices, answers, strict=True):
                row = {
                    "round": number,
                    "prompt": drawn[index].text,
                    "subject": drawn[index].subject,
                    "answer": tokenizer.decode(answer.ids),
                    "tokens": len(answer.ids),
                    "finished": answer.finished,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done = min(wanted, (whole := whole + 1) * batch)
            print(f"round {number + 1}: {done} of {wanted} answers", flush=True)


def _eos(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line.endswith("}")]


def _keep(samples: Path, number: int, count: int) -> None:
    """Drop what a kill left after the last whole batch of this round."""
    lines = _lines(samples)
    mine = [line for line in lines if json.loads(line)["round"] == number][:count]
    write_text(samples, "".join(f"{x}\n" for x in [y for y in lines if json.loads(y)["round"] != number] + mine))


def judge(samples: Path) -> Iterator[dict[str, Any]]:
    """Each sample with its verdict by the rule."""
    for line in _lines(samples):
        row = json.loads(line)
        verdict = check(row["prompt"], row["answer"], row["finished"], row["subject"])
        yield row | {"meets": verdict.meets, "score": verdict.score, "failed": verdict.failed}


def _write_splits(config: Synthesize, judged: list[dict[str, Any]], out: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for pair in pairs_of(judged):
        split = split_of(pair["subject"], config.dev_share, config.test_share)
        provenance = {"generator": config.model.path, "seed": config.seed, "judge": "rules"}
        rows[split].append({"id": f"synthetic:{split}:{len(rows[split])}", **pair, **provenance})
    for split, pairs in rows.items():
        write_text(out / f"{split}.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))
    share = sum(s["meets"] for s in judged) / len(judged)
    counts = ", ".join(f"{len(pairs)} {split}" for split, pairs in rows.items())
    print(f"{len(judged)} answers, {share:.0%} meet the rule; pairs: {counts}; in {out}", flush=True)


def main() -> None:
    """Compose, parse and synthesize."""
    app("synthesize", Synthesize, lambda config: synthesize(config) and None)


if __name__ == "__main__":
    main()
