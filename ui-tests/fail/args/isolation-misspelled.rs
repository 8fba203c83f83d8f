use idempotent_runtime::idempotent;

struct Tx;

#[idempotent(isolation = "serialisable")]
async fn create_charge(_tx: Tx) {}

fn main() {}
