"""Attention of packed rows as each kind of device computes it fastest, and pair by pair as any does."""
