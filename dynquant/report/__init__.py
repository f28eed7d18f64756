"""Reports on a model: artefacts, card, plots, forecasts."""
