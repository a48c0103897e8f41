"""Probes for `dpo.doctor`, one concern a module. Only `device` imports torch, in a process of its own."""
