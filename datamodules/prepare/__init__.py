"""Behind ``python -m wsbench data TASK``: build what a recipe needs, read all that training would read."""
