use idempotent_runtime::idempotent;

#[idempotent(key = token, header = "x-request-id")]
async fn create_charge(token: String) -> String {
    token
}

fn main() {}
