"""Models of others that are asked over HTTP: how, what they said, and where that is kept."""
