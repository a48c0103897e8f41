"""The `synthetic` dataset: its prompts, how answers become pairs, and the pairs themselves."""
