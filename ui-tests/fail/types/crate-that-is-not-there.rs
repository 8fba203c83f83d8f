use idempotent_runtime::idempotent;

#[idempotent(crate = "idem")]
async fn create_charge(body: String) -> String {
    body
}

fn main() {}
