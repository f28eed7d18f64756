"""The durable queue: jobs in a database, and the engine that runs them."""
