"""nltk's sentence model (punkt_tab, English), which two of IFEval's checkers need.

`python -m dpo.evaluation.judges.punkt` fetches it where no copy is found: nltk's own server is not needed, for the
wheel of llama-index-core on PyPI carries it. Only the English tables are taken (text files, 0.3 MB); nothing of the
wheel is installed or run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from dpo.caches.folder import cache_folder
from dpo.config.failures import exits
from dpo.errors import NetworkError

WHEEL = "llama-index-core==0.14.25"
COMMAND = "python -m dpo.evaluation.judges.punkt"
INSIDE = PurePosixPath("llama_index/core/_static/nltk_cache")
ENGLISH = PurePosixPath("tokenizers/punkt_tab/english")


def available() -> bool:
    """Whether nltk finds the model, in its own places or in the cache folder."""
    import nltk

    ours = str(cache_folder("nltk"))
    if ours not in nltk.data.path:
        nltk.data.path.append(ours)
    try:
        nltk.data.find(f"{ENGLISH}/")
    except LookupError:
        return False
    return True


def fetch() -> Path:
    """Take the English tables out of the wheel into the cache folder; returns theirs. Raises NetworkError."""
    with tempfile.TemporaryDirectory() as aside:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", aside, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(aside).glob("*.whl"))
        if done.returncode or not wheels:
            said = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise NetworkError(f"pip cannot download {WHEEL}: {said}")
        return extract(wheels[0], cache_folder("nltk"))


def extract(wheel: Path, folder: Path) -> Path:
    """Write the English tables of `wheel` below `folder`; returns the folder they are in."""
    made = folder / ENGLISH
    made.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.parent == INSIDE / ENGLISH:
                (made / path.name).write_bytes(archive.read(name))
    return made


def main() -> None:
    """Say where the model is, fetching it if need be."""
    exits(lambda: print("nltk finds punkt_tab already" if available() else f"punkt_tab in {fetch()}"))


if __name__ == "__main__":
    main()
