"""The only importer of huggingface_hub: reads models and datasets, publishes models."""

from dynquant.hub.client_environment import check_imports

check_imports()

from dynquant.hub.datasets import HubDataset, HubDatasets
from dynquant.hub.inbox import HubInbox
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher

__all__ = ["HubDataset", "HubDatasets", "HubInbox", "HubModels", "HubPublisher"]
