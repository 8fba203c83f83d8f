// Does what it is told on its input, a JSON object a line, and tells what the SDK made of it, likewise:
// node driver.mjs SERVER SECRET_KEY

import { createInterface } from 'node:readline';
import { client } from './client.mjs';

const [server, secretKey] = process.argv.slice(2);
const stripe = client(server, secretKey, { telemetry: false });

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await outcome(JSON.parse(line))));
}

async function outcome({ create, key, retries, retrieve }) {
  try {
    const intent = retrieve
      ? await stripe.paymentIntents.retrieve(retrieve)
      : await stripe.paymentIntents.create(create, { idempotencyKey: key, maxNetworkRetries: retries });
    const { statusCode, idempotencyKey, headers } = intent.lastResponse;
    return {
      returned: intent,
      status: statusCode,
      key: idempotencyKey ?? null,
      replayed: headers['idempotent-replayed'] === 'true',
    };
  } catch (error) {
    return {
      raised: error.constructor.name,
      type: error.rawType ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
      message: error.message,
      payment_intent: error.payment_intent?.id ?? null,
      status: error.statusCode ?? null,
      replayed: error.headers?.['idempotent-replayed'] === 'true',
    };
  }
}
