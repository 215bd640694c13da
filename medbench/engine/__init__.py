"""Engines: what runs the jobs of a plan. ``local`` is a process for every job on this machine."""
