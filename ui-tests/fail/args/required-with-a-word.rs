use idempotent_runtime::idempotent;

#[idempotent(required = yes)]
async fn create_charge() {}

#[idempotent(required())]
async fn create_refund() {}

#[idempotent(required(true))]
async fn create_payout() {}

fn main() {}
