"""A tier server: edge or cloud over the Open Inference Protocol v2."""
