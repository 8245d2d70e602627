"""The jobs of the application, as functions: each command of the command line is one of them."""
