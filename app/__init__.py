"""Sluiceway: an HTTP guardrail in front of language models."""
