"""Running models: texts in, scores out. Knows nothing about policies or HTTP."""
