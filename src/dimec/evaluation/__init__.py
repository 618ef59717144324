"""Replay a policy over an exit table; metrics, intervals and the honest controls."""
