"""From YAML and the command line to one typed, checked Config, without torch."""
