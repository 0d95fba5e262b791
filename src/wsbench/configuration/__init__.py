"""What is configured: tasks and recipes, the fields that there are, and what is taken of a run's own configuration."""
