"""The quickstart itself, the real 135M model in NF4, killed and continued to the same adapter bit for bit."""

from __future__ import annotations

import signal

import pytest
import tiny

# The quickstart in little: two checkpoints before the last, an evaluation between them.
COMMAND = [
    "experiment=quickstart", "dpo.max_steps=6", "dpo.batch_size=2", "dpo.save_every=2", "dpo.eval_every=3",
    "dpo.eval_limit=4",
]  # fmt: skip
# kill -9 one after the other, each in the run that the last one left: in an evaluation, a step, a save, the last
# evaluation. The numbers count calls within each process.
KILLS = [("dev", 2), ("step", 2), ("save", 1), ("dev", 2)]


@pytest.mark.slow
def test_a_killed_quickstart_ends_in_the_same_adapter(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    code, output = tiny.run("train", COMMAND, undisturbed)
    assert code == 0, output
    began = []
    for place, number in KILLS:
        code, output = tiny.run("train", COMMAND, killed, (place, number, tiny.KILL))
        assert code == -signal.SIGKILL, output
        began += [line for line in output.splitlines() if line.startswith("continuing at")]
    code, output = tiny.run("train", COMMAND, killed)
    assert code == 0, output
    began += [line for line in output.splitlines() if line.startswith("continuing at")]
    print(*began, sep="\n")
    assert len(began) == len(KILLS)
    assert tiny.outcome(killed, "quickstart") == tiny.outcome(undisturbed, "quickstart")
