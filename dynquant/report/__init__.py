"""What is said about a finished model: artefacts, card, plots, forecasts."""
