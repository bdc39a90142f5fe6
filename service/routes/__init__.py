"""What each address does. A module makes one router, for a service whose parts it is handed."""
