"""What every room uses: errors, tiers, tensors, files, metrics, progress."""
