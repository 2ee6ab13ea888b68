"""Decode-time control: a critic's values change what a language model may say next."""
