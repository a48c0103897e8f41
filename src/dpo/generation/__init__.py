"""Drawing answers from a model that is loaded here, in batches that do not change what each draws."""
