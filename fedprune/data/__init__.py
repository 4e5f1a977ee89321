"""Real data sets, how they are split over clients, and each client's train, validation and test part."""
