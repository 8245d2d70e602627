"""The catalog: what is known of adapters and bundles, in SQL."""
