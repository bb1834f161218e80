"""Ask the model server.

In: a function that prepares pictures as a card wants them. Out: an Answer, with the version and card that it is from.

client asks and reads the answers → replicas chooses an address for each call, tries a broken one once more, and has
predictions wait where limit says that an address takes no more → channel opens the connections. readiness decides the
answer to /readyz. reason is what a model server's own words become before a caller reads them.
"""
