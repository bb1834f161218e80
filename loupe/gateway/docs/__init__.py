"""Describe the gateway to programs and to people.

openapi (makes the document from the types that check requests and the tree of errors) → page (/openapi.json and /docs).
"""
