"""The only importer of huggingface_hub: models and datasets from the Hub, models to it."""

from dynquant.hub.client_environment import check_imports

check_imports()

from dynquant.hub.datasets import HubDataset, HubDatasets
from dynquant.hub.inbox import HubInbox, InboxEntry
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher

__all__ = ["HubDataset", "HubDatasets", "HubInbox", "HubModels", "HubPublisher", "InboxEntry"]
