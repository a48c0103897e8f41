"""Source rows become preference pairs, and pairs become token ids, without torch."""
