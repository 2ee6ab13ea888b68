"""The referee: test sets, figures of merit and reports: `sluiceway eval`."""
