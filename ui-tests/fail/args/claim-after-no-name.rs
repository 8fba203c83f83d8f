use idempotent_runtime::idempotent;

#[idempotent(claim_after = "user")]
async fn in_quotes(user: String) {
    drop(user);
}

#[idempotent(claim_after = user.id)]
async fn expression(user: String) {
    drop(user);
}

#[idempotent(claim_after)]
async fn without_value(user: String) {
    drop(user);
}

fn main() {}
