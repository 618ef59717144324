"""The device: it classifies texts, asks the edge and the cloud, and always answers."""
