use idempotent_runtime::idempotent;

struct Charge;

#[idempotent]
async fn create_charge(_body: String) -> Charge {
    Charge
}

#[idempotent]
async fn refund() -> Result<String, Charge> {
    Err(Charge)
}

fn main() {}
