"""File access of the overlay: private files, atomic writes."""
