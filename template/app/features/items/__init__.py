"""An example feature, yours to copy, to change or to delete: an update leaves it alone."""
