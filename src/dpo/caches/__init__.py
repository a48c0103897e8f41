"""What is kept between runs and shared by processes: files, reference log-probs, baselines, verdicts."""
