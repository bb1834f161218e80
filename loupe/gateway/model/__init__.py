"""The model server, as the gateway sees it.

In: a function that prepares pictures as a card wants them. Out: an Answer, with the version and the card it is from.

client asks over gRPC, with retries inside the deadline; cardless makes a card for models that Loupe did not make, and
prepares pictures for them; readiness is what /readyz says.
"""
