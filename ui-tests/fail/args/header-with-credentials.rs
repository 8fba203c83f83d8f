use idempotent_runtime::idempotent;

#[idempotent(header = "x-api-key")]
async fn create_charge() {}

#[idempotent(header = "Authorization")]
async fn create_refund() {}

#[idempotent(header = "cookie")]
async fn create_order() {}

#[idempotent(header = "proxy-authorization")]
async fn create_payout() {}

fn main() {}
