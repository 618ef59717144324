"""From a run to tiers: what accuracy can be promised at what cost, and the export of a bundle."""
