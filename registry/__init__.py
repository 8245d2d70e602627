"""The application: catalog, content store, workflows and the command line."""
