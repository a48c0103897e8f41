"""What a training command would take of a GPU that is not here: its real step on tensors without contents."""
