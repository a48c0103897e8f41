"""A signal at any moment after the start of a verb is one line and 130 or 143; what nobody reads stops no work."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import tiny
from omegaconf import OmegaConf

import dpo
from dpo.config.arguments import quoted
from dpo.config.failures import translate
from dpo.errors import DiskFull, Interrupted
from dpo.training.interrupts import Interrupts

DEV_FULL = Path("/dev/full")


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of a second or two, once it steps."""
    folder = tmp_path_factory.mktemp("o'brien")
    model, pairs = tiny.make_model(folder / "model"), tiny.make_pairs(folder / "pairs.jsonl")
    words = tiny.arguments(model, pairs, "lora=lora", "dpo.max_steps=2", "dpo.eval_every=0")
    words = [
        f"{key}={quoted(value)}" if "'" in value else f"{key}={value}"
        for key, value in (w.split("=", 1) for w in words)
    ]
    return [sys.executable, "-m", "dpo.train", *words]


def begun(process: subprocess.Popen[str]) -> None:
    """Wait until the interpreter has come to our first instruction, where the signals are caught."""
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:") and int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                return
        time.sleep(0.002)


def struck(words: list[str], cwd: Path, number: int, after: float) -> tuple[int, str]:
    process = subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    begun(process)
    time.sleep(after)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    return process.returncode, output


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc to know when the first instruction is")
@pytest.mark.parametrize(("verb", "number", "after"), [
    ("train", signal.SIGINT, 0.0), ("train", signal.SIGTERM, 0.02), ("train", signal.SIGINT, 0.6),
    ("status", signal.SIGINT, 0.01), ("doctor", signal.SIGTERM, 0.01),
])  # fmt: skip
def test_a_signal_in_the_first_second_ends_a_verb_with_a_line(verb, number, after, tmp_path):
    words = [sys.executable, "-m", f"dpo.{verb}", *(["model=smollm2_135m"] if verb == "train" else [])]
    code, output = struck(words, tmp_path, number, after)
    assert code == 128 + number, output
    # Before it stands at most what is about to be loaded.
    assert output.splitlines()[-1] == "interrupted"
    assert "error" not in output


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_a_signal_at_a_random_moment_ends_a_run_with_a_line(command, seed, tmp_path):
    draw = random.Random(seed)
    number = draw.choice([signal.SIGINT, signal.SIGTERM])
    code, output = struck(command, tmp_path, number, draw.uniform(0, 4))
    assert code in (128 + number, 0), output
    assert ("interrupted" in output) == (code != 0)
    assert ("done:" in output) == (code == 0)
    assert "Traceback" not in output


def test_a_signal_that_strikes_an_import_is_raised_at_the_next_safe_point(tmp_path, monkeypatch):
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    for _ in range(1000): pass\n"
        "except BaseException as error:\n    print('swallowed', error)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Interrupts() as interrupts:
        import swallows  # noqa: F401

        assert interrupts.pending == signal.SIGTERM
        with pytest.raises(Interrupted):
            interrupts.check()


def test_a_signal_that_a_library_swallows_stays_pending():
    with Interrupts() as interrupts:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except Exception:  # noqa: BLE001, S110 - as libraries do
            pass
        with pytest.raises(Interrupted):
            interrupts.check()


@pytest.mark.parametrize(
    "gone", ["reader", *(pytest.param(name, marks=pytest.mark.slow) for name in ("disk", "closed"))]
)
def test_a_run_goes_on_when_nobody_reads_its_story(command, gone, tmp_path):
    if gone == "disk" and not DEV_FULL.exists():
        pytest.skip("no /dev/full here")
    if gone == "reader":
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read().decode()
        code = process.wait(120)
    else:
        redirect = "> /dev/full" if gone == "disk" else ">&- 2>&-"
        done = subprocess.run(["bash", "-c", f'"$@" {redirect}', "-", *command], cwd=tmp_path, capture_output=True)
        code, error = done.returncode, done.stderr.decode()
    assert code == 0, error
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
    assert tiny.record(tmp_path)[1]["status"] == "complete"


@pytest.mark.parametrize("to", ["/dev/full", "&-", "out.txt"])
def test_what_cannot_be_printed_is_dropped_or_spelled(to, tmp_path):
    code = "from dpo import streams; streams.forgive(); print('caf\u00e9', flush=True)\nopen('x', 'w').write('y')"
    script = f'PYTHONIOENCODING=ascii "$0" -c "$1" >{to}; echo $?'
    done = subprocess.run(["bash", "-c", script, sys.executable, code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (tmp_path / "x").read_text() == "y"
    if to == "out.txt":
        assert (tmp_path / to).read_text() == "caf\\xe9\n"


@pytest.mark.slow
def test_letters_a_terminal_lacks_are_spelled_in_ascii(tmp_path):
    words = [sys.executable, "-m", "dpo.prepare", "dataset=synthetic", "dataset.limit=20"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    done.stdout.decode("ascii")


@pytest.mark.parametrize("text", ["o'brien", "a\\", "it\\'s", "''", "a b,c=[d]", "ümlaut"])
def test_any_folder_is_read_back_as_it_is_called(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"run={quoted(text)}").value() == text
    (listed,) = OverridesParser.create().parse_overrides([f"runs=[{quoted(text)},b]"])
    assert listed.value() == [text, "b"]


def test_importing_the_package_leaves_signals_and_streams_alone():
    assert dpo.__version__
    before = signal.getsignal(signal.SIGINT)
    code = "import sys, signal; out = sys.stdout; import dpo.train; print(sys.stdout is out, signal.getsignal(2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("True <built-in function default_int_handler>"), done.stderr
    assert signal.getsignal(signal.SIGINT) is before


def struck_call(at: int, body: Callable[[], object]) -> BaseException | None:
    """What comes out of `body` when its `at`-th call raises KeyboardInterrupt; None when it has fewer."""
    calls = 0

    def strike(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"
        if event == "call" and calls == at:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(strike)
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - what became of the signal is what is asked
        return error
    finally:
        sys.setprofile(None)
    return None


def test_a_signal_that_a_library_hides_behind_its_own_error_is_still_one():
    masked, at = 0, 1
    while error := struck_call(at, lambda: OmegaConf.create({"names": ["q_proj", "v_proj"]})):
        at += 1
        if not isinstance(error, KeyboardInterrupt):
            masked += 1
            said = translate(error)
            assert isinstance(said, Interrupted)
            assert said.exit_code == 130
    assert masked, "OmegaConf hides none any more"


def test_a_full_disk_is_said_though_a_signal_came_before():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    full.__context__ = KeyboardInterrupt()
    assert isinstance(translate(full), DiskFull)
