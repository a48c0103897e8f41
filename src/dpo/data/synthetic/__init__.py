"""The `synthetic` dataset: its prompts, and the pairs themselves."""
