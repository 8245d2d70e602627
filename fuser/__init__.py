"""Many adapters into one MeteoRA bundle, and out again; verified both ways."""
