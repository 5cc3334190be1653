"""What `poe` runs: none of it is in the image."""
