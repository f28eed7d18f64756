"""The only importer of huggingface_hub: models and datasets from the Hub."""

from dynquant.hub.datasets import HubDataset, HubDatasets
from dynquant.hub.models import HubModels

__all__ = ["HubDataset", "HubDatasets", "HubModels"]
