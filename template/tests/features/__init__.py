"""The tests of the features. Yours: an update leaves this whole folder alone."""
