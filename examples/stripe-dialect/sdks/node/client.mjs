// Stripe's SDK, led to another server than Stripe's.

import Stripe from 'stripe';

export function client(server, secretKey, options = {}) {
  const { protocol, hostname, port } = new URL(server);
  return new Stripe(secretKey, { protocol: protocol.slice(0, -1), host: hostname, port, ...options });
}
