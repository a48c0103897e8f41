"""What the command line explains: a verb's groups and keys with the comments of its YAML, and other tools' words."""
