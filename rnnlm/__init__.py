"""What the two models share with each other and with the service, and their training."""
