"""The features of the service. Yours: an update leaves this whole folder alone."""
