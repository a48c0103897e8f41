"""Where rows lie: in files and folders here, or in a repository of the hub."""
