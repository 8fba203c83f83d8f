// Pays, and sends the payment once more with the same key: node pay.mjs [SERVER [SECRET_KEY]]

import { randomUUID } from 'node:crypto';
import { client } from './client.mjs';

const [server = 'http://127.0.0.1:4242', secretKey = 'sk_test_tea'] = process.argv.slice(2);
const stripe = client(server, secretKey);

const payment = {
  amount: 1999,
  currency: 'eur',
  payment_method: 'pm_card_visa',
  confirm: true,
  metadata: { order: '6735' },
};
const idempotencyKey = randomUUID();

for (const attempt of ['first', 'again']) {
  const intent = await stripe.paymentIntents.create(payment, { idempotencyKey });
  const replayed = intent.lastResponse.headers['idempotent-replayed'] === 'true';
  console.log(`${attempt}: ${intent.id} ${intent.status}, ${replayed ? 'replayed' : 'executed'}`);
}
