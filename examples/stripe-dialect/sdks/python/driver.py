"""Does what it is told on its input, a JSON object a line, and tells what the SDK made of it, likewise:
python driver.py SERVER SECRET_KEY"""

import json
import sys

import stripe
from client import client

stripe.enable_telemetry = False
server, secret_key = sys.argv[1:]
payment_intents = client(server, secret_key).v1.payment_intents


def outcome(create=None, key=None, retries=None, retrieve=None):
    try:
        if retrieve:
            intent = payment_intents.retrieve(retrieve)
        else:
            options = {"idempotency_key": key, "max_network_retries": retries}
            intent = payment_intents.create(create, {name: value for name, value in options.items() if value is not None})
        response = intent.last_response
        return {
            "returned": json.loads(str(intent)),
            "status": response.code,
            "key": response.idempotency_key,
            "replayed": response.headers.get("idempotent-replayed") == "true",
        }
    except stripe.StripeError as error:
        told = (error.json_body or {}).get("error") or {}
        return {
            "raised": type(error).__name__,
            "type": told.get("type"),
            "code": told.get("code"),
            "param": told.get("param"),
            "message": error.user_message,
            "payment_intent": told.get("payment_intent", {}).get("id"),
            "status": error.http_status,
            "replayed": error.headers.get("idempotent-replayed") == "true",
        }


for line in sys.stdin:
    print(json.dumps(outcome(**json.loads(line))), flush=True)
