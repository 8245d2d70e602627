"""Types of everything stored on disk or sent over the wire; and the errors."""
