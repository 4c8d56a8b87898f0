"""A trained model on its own: how fast it is, and the files it leaves by."""
