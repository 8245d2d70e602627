"""What the application does, as functions: each command of the command line is one of them."""
