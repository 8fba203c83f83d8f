"""Pays, and sends the payment once more with the same key: python pay.py [SERVER [SECRET_KEY]]"""

import sys
from uuid import uuid4

from client import client

arguments = dict(enumerate(sys.argv))
stripe = client(arguments.get(1, "http://127.0.0.1:4242"), arguments.get(2, "sk_test_tea"))

payment = {
    "amount": 1999,
    "currency": "eur",
    "payment_method": "pm_card_visa",
    "confirm": True,
    "metadata": {"order": "6735"},
}
options = {"idempotency_key": str(uuid4())}

for attempt in ["first", "again"]:
    intent = stripe.v1.payment_intents.create(payment, options)
    replayed = intent.last_response.headers.get("idempotent-replayed") == "true"
    print(f"{attempt}: {intent.id} {intent.status}, {'replayed' if replayed else 'executed'}")
