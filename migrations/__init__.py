"""The alembic environment and revisions of the catalog, shipped with the package."""
