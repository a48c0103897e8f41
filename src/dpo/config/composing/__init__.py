"""What stands around Hydra while a command line is composed: its own keys, the search path, a launcher's leftovers."""
