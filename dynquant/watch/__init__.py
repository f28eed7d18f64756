"""The watcher: new models on the Hub are converted by the rules of an operator."""
