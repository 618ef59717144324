"""What a text costs: in λ by the papers' cost model, or in measured milliseconds, bytes, joules and money."""
