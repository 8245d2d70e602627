"""The ground floor for files: reading, writing, staging, scratch names, locks, digests and progress."""
