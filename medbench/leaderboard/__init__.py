"""Leaderboards: views computed from records alone."""
