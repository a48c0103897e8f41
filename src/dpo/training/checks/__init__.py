"""What must hold before a run's first step and at each step, checked instead of hoped."""
