"""`python -m dpo.synthesize`: sample answers from a model, judge them by the rule, write preference pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.config.app import main as app
from dpo.config.synthesize import Synthesize
from dpo.data.synthetic.pairs import SPLITS, pairs_of, split_subjects
from dpo.data.synthetic.prompts import Prompt, from_file, shipped
from dpo.evaluation.rules import check
from dpo.records.files import write_text


def synthesize(config: Synthesize) -> Path:
    """Sample, going on where samples.jsonl ends, judge, and write the three splits; returns the folder."""
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    prompts = from_file(Path(config.prompts).expanduser()) if config.prompts else shipped()
    samples = out / "samples.jsonl"
    _sample_all(config, prompts, samples)
    _write_splits(config, list(judge(samples)), out)
    return out


def _sample_all(config: Synthesize, prompts: list[Prompt], samples: Path) -> None:
    done = len(_lines(samples))
    wanted = len(prompts) * config.n
    if done >= wanted:
        return
    from dpo.evaluation.generate import Sampling, sample
    from dpo.modeling.device import choose_compute
    from dpo.modeling.policy import load_base, templates
    from dpo.modeling.tokenizer import load_tokenizer
    from dpo.modeling.weights import resolve

    compute = choose_compute(config.hardware.device, config.hardware.precision)
    weights = resolve(config.model.path, config.model.revision, config.model.trust_remote_code)
    tokenizer = load_tokenizer(weights.folder, config.model.chat_template, templates(), weights.remote_code)
    model = load_base(weights, None, compute, config.hardware.attention).eval()
    drawn = [prompt for prompt in prompts for _ in range(config.n)]
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p.text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for p in drawn
    ]
    sampling = Sampling(config.sampling.temperature, config.sampling.top_k, config.sampling.max_new_tokens, config.seed)
    stops = {tokenizer.eos_token_id, *_eos(model)}
    batch = config.sampling.batch_size
    # Whole batches only: one torn by a kill is drawn again, the same.
    whole = done // batch
    write_text(samples, "".join(f"{line}\n" for line in _lines(samples)[: whole * batch]))
    with samples.open("a", encoding="utf-8") as file:
        for indices, answers in sample(model, ids, sampling, stops, tokenizer.pad_token_id, batch, skip=whole):
            for index, answer in zip(indices, answers, strict=True):
                row = {
                    "prompt": drawn[index].text,
                    "subject": drawn[index].subject,
                    "answer": tokenizer.decode(answer.ids),
                    "tokens": len(answer.ids),
                    "finished": answer.finished,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            done = min(wanted, (whole := whole + 1) * batch)
            print(f"{done} of {wanted} answers", flush=True)


def _eos(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line.endswith("}")]


def judge(samples: Path) -> Iterator[dict[str, Any]]:
    """Each sample with its verdict by the rule."""
    for line in _lines(samples):
        row = json.loads(line)
        verdict = check(row["prompt"], row["answer"], row["finished"], row["subject"])
        yield row | {"meets": verdict.meets, "score": verdict.score, "failed": verdict.failed}


def _write_splits(config: Synthesize, judged: list[dict[str, Any]], out: Path) -> None:
    pairs = pairs_of(judged)
    place = split_subjects(pairs, config.dev_pairs, config.test_pairs)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for pair in pairs:
        split = place[pair["subject"]]
        provenance = {"generator": config.model.path, "seed": config.seed, "judge": "rules"}
        rows[split].append({"id": f"synthetic:{split}:{len(rows[split])}", **pair, **provenance})
    for split, chosen in rows.items():
        write_text(out / f"{split}.jsonl", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in chosen))
    share = sum(s["meets"] for s in judged) / len(judged)
    counts = ", ".join(f"{len(chosen)} {split}" for split, chosen in rows.items())
    print(f"{len(judged)} answers, {share:.0%} meet the rule; pairs: {counts}; in {out}", flush=True)


def main() -> None:
    """Compose, parse and synthesize."""
    app("synthesize", Synthesize, synthesize)


if __name__ == "__main__":
    main()
