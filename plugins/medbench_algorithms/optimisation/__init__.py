"""Methods that learn how to optimise: where to start, how to step, which solver to use."""
