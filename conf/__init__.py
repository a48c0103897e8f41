"""YAML only."""
