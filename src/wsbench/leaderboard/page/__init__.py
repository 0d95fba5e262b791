"""Records as one HTML page without a network, and its figures as images."""
