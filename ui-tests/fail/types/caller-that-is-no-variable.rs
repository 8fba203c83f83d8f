use idempotent_runtime::idempotent;

#[idempotent(caller = user.id)]
async fn create_charge(body: String) -> String {
    body
}

fn main() {}
