"""Methods that make more of few images."""
