"""Stripe's SDK, led to another server than Stripe's."""

from stripe import StripeClient


def client(server, secret_key):
    # As many as stripe-node's by default; a `StripeClient` that is not told retries nothing.
    return StripeClient(secret_key, base_addresses={"api": server}, max_network_retries=2)
