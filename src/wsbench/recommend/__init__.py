"""The user's own answer: which norm, at which learning rate, on their data, within a budget of time."""
