"""The gateway described to programs and to people.

openapi (the document, made from the types that check requests and the tree of errors) → page (/openapi.json and /docs).
"""
