"""Methods that answer with masks or boxes: where in a query something is."""
