"""Probes for `dpo.doctor`, one concern a module; only `device` imports torch, in a process of its own."""
