"""Direct Preference Optimization with QLoRA as a Hydra-configured experiment framework."""

__version__ = "0.1.0"

import sys

# Here and not in the verbs: `python -m dpo.VERB` imports this first, hundreds of modules before the verb's first line.
if sys.argv[:1] == ["-m"] and any(word.startswith("dpo.") for word in sys.orig_argv):
    from dpo import signals, streams

    signals.stand()
    streams.forgive()
