"""Methods that adapt to nothing: what a network knows of its sources' classes, and no more."""
