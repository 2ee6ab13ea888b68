"""Offline: data sets, training, export and evaluation. The service never imports it."""
