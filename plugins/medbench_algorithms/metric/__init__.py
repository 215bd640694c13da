"""Methods that compare features by a metric, given or learned."""
