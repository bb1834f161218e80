"""Describe the gateway to programs and to people.

In: the types that check requests, the tree of errors, and the settings. Out: /openapi.json and /docs.

openapi (makes the document) → page (serves both addresses).
"""
