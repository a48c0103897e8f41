"""Judges that score an answer by a trained reward model: a sequence classifier, or a run of this project."""
