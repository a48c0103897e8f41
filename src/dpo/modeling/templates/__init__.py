"""What a stranger's chat template may do while it renders."""
