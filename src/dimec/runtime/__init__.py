"""The tiers at run time: the device, the tier server, and what they say to each other."""
