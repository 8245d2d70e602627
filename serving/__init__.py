"""A bundle behind an HTTP interface in the form of OpenAI's.

`app` checks requests and hands them to a backend: `batches` runs the bundle in this process, and another
backend can forward them to engines.
"""
