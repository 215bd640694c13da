"""The gate: two sets of measurements in, a verdict and an exit code out.

Whoever maintains an algorithm wants one line in CI that fails when a change made it less accurate,
slower or hungrier, and only then. Needs neither torch nor a plugin.
"""
