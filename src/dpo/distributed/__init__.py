"""What the processes of one run do together, and how they are started."""
