"""An example feature, yours to copy, change or delete: an update leaves it alone."""
