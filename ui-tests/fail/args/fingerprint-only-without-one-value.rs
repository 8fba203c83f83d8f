use idempotent_runtime::idempotent;

#[idempotent(fingerprint = only)]
async fn without_a_value(body: String) -> String {
    body
}

#[idempotent(fingerprint = only(body.len(), 1))]
async fn with_two_values(body: String) -> String {
    body
}

fn main() {}
