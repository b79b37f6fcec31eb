"""Demo: the daemon with a simulated Exchange server, and a comparison of its deliveries with the changes made."""
