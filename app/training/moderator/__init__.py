"""The moderator: one encoder, fine-tuned end to end: `sluiceway train moderator`."""
