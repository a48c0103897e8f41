"""Source rows become preference pairs; pairs become token ids. Nothing here imports torch."""
