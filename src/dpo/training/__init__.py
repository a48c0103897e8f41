"""From a model and its pairs to an adapter: the stages, the step, evaluation between steps, checkpoints, guards."""
