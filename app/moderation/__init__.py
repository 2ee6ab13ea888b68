"""The engine: conversations in, verdicts out, whole or streamed."""
