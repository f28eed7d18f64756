"""A model before any work: its files, config and origin on the Hub; pure."""
