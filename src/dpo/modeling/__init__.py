"""Tokenizer and policy from a hub id, a folder, or weights shipped in a package."""
