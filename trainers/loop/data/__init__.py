"""Which rows make an update, and how they are read and augmented."""
