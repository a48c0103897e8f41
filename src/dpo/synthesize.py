"""`python -m dpo.synthesize`: a generator answers prompts, a judge ranks the answers, pairs are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.config.entry import main as app
from dpo.config.synthesize import Synthesize, check, register


def synthesize(config: Synthesize) -> Path:
    """Draw, going on where samples.jsonl ends, rank, and write the splits; returns the folder."""
    check(config)
    from dpo.data.synthetic.prompts import distinct, from_file, shipped
    from dpo.synthesis.generators import build_generator
    from dpo.synthesis.pairs import pairs_of, split_subjects, write_pairs
    from dpo.synthesis.ranking import rank, the_judge
    from dpo.synthesis.samples import draw_samples

    judge = the_judge(config.judge)
    given = from_file(Path(config.prompts).expanduser()) if config.prompts else shipped()
    prompts = distinct(given)
    if len(prompts) < len(given):
        print(f"{len(given) - len(prompts)} of {len(given)} prompts stand there twice", flush=True)
    generator = build_generator(config)
    out = Path(config.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    samples = draw_samples(config, prompts, generator, out)
    ranked = rank(samples, judge)
    pairs = pairs_of(ranked)
    place = split_subjects(pairs, config.dev_pairs, config.test_pairs)
    provenance = {**generator.provenance, "temperature": config.sampling.temperature, "seed": config.seed}
    counts = write_pairs(pairs, place, {**provenance, "judge": judge.name}, out / "pairs")
    _tell(samples, ranked, counts, out)
    return out


def _tell(samples: list[dict[str, Any]], ranked: list[dict[str, Any]], counts: dict[str, int], out: Path) -> None:
    decided = [row for row in ranked if row["meets"] is not None]
    share = f", {sum(row['meets'] for row in decided) / len(decided):.0%} pass" if decided else ""
    unjudged = len(samples) - len(ranked)
    left = f", {unjudged} without a verdict" if unjudged else ""
    cost = sum(row["cost"] for row in samples) + sum(row["judge_cost"] for row in ranked)
    print(f"{len(samples)} answers ({sum(row['tokens'] for row in samples)} tokens, cost {cost:.4g}){share}{left}")
    print(f"pairs: {', '.join(f'{count} {split}' for split, count in counts.items())}; in {out / 'pairs'}")
    if counts["train"]:
        print(f"python -m dpo.train dataset=local dataset.path={out / 'pairs'}", flush=True)


def _body(config: Synthesize) -> None:
    synthesize(config)


def main() -> None:
    """Compose, parse and synthesize."""
    register()
    app("synthesize", Synthesize, _body)


if __name__ == "__main__":
    main()
